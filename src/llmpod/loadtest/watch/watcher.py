"""Watcher: looks at an endpoint's /health, sends probe jobs, and keeps the numbers."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from llmpod.loadtest.intake import job_id, job_path, number
from llmpod.loadtest.model.failures import TERMINAL
from llmpod.loadtest.model.health import health_sample
from llmpod.loadtest.run.client import CallError, Reply, RunPod
from llmpod.loadtest.run.context import describe
from llmpod.loadtest.run.polling import PollPace
from llmpod.loadtest.watch.catalogue import ENDED_STATES, JOB_STATES
from llmpod.loadtest.watch.exposition import Numbers

LONGEST_WAIT_S = 90.0
"""/runsync's usual wait; a job that takes longer is polled."""


class ProbeError(Exception):
    """A probe job that was not completed; the message says why."""


class Watcher:
    """Watches one endpoint. Nothing that it does fails but by a number and a line to `say`."""

    def __init__(
        self, client: RunPod, numbers: Numbers, probe_input: Any, timeout_s: float, say: Callable[[str], None]
    ):
        """`timeout_s`: of a probe job. `say`: told once when something begins to fail, and when it works again."""
        self.numbers = numbers
        self._client = client
        self._input = probe_input
        self._timeout_s = timeout_s
        self._say = say
        self._failing: dict[str, str | None] = {"/health": None, "probe": None}
        self._initializing: int | None = None

    async def look(self) -> bool:
        """One look at /health; whether it was answered with counts."""
        try:
            reply = await self._client.call("health", "GET", "/health", timeout_s=10, quick=True)
            sample = health_sample(reply.body) if reply.status < 300 else None
            problem = None if sample is not None else describe(reply)
        except CallError as error:
            sample, problem = None, error.detail
        self._note("/health", problem)
        self.numbers.set("llmpod_endpoint_up", float(sample is not None))
        for gauge in ("llmpod_endpoint_jobs", "llmpod_endpoint_jobs_ended", "llmpod_endpoint_workers"):
            self.numbers.forget(gauge)
        if sample is None:
            self.numbers.add("llmpod_endpoint_polls_failed_total")
            return False
        for name, count in sample["jobs"].items():
            gauge, state = ("jobs", JOB_STATES) if name in JOB_STATES else ("jobs_ended", ENDED_STATES)
            self.numbers.set(f"llmpod_endpoint_{gauge}", count, state[name])
        for state_name, count in sample["workers"].items():
            self.numbers.set("llmpod_endpoint_workers", count, state_name)
        initializing = sample["workers"].get("initializing")
        if initializing is not None:
            if self._initializing is not None:
                rise = max(0, initializing - self._initializing)
                self.numbers.add("llmpod_endpoint_cold_starts_total", rise)
            self._initializing = initializing
        return True

    async def probe(self) -> bool:
        """Send one probe job and measure it; whether it was completed."""
        try:
            async with asyncio.timeout(self._timeout_s):
                reply, total_s = await self._run_job()
        except (ProbeError, CallError) as error:
            problem: str | None = str(error)
        except TimeoutError:
            problem = f"not ended within {self._timeout_s:g} s"
        else:
            problem = None
            self.numbers.observe("llmpod_probe_total_seconds", total_s)
            for part, field in (("delay", "delayTime"), ("exec", "executionTime")):
                taken_ms = number(reply.body.get(field))
                if taken_ms is not None:
                    self.numbers.observe(f"llmpod_probe_{part}_seconds", taken_ms / 1000)
        if problem is not None:
            self.numbers.add("llmpod_probe_failures_total")
        self._note("probe", problem)
        return problem is None

    async def _run_job(self) -> tuple[Reply, float]:
        """Send the probe job and wait until it has ended, for as long as the caller lets it. Cancels it otherwise.

        Raises:
            ProbeError: it was refused, or did not end as COMPLETED.
            CallError: no answer.
        """
        # RunPod drops it by itself when nobody waits any more: probes must not pile up in the queue.
        policy = {"ttl": max(10_000, int(self._timeout_s * 1000))}
        # /runsync ends before the time does: a probe can only be cancelled once its id is known.
        wait_ms = int(max(1.0, min(LONGEST_WAIT_S, 0.8 * self._timeout_s)) * 1000)
        began, pace, polls = perf_counter(), PollPace(), 0
        reply = await self._client.call(
            "runsync",
            "POST",
            f"/runsync?wait={wait_ms}",
            body={"input": self._input, "policy": policy},
            timeout_s=self._timeout_s + 10,
        )
        known = job_id(reply.body.get("id")) if isinstance(reply.body, dict) else None
        try:
            while reply.status < 300 and known is not None and reply.job_status not in TERMINAL:
                await asyncio.sleep(pace.gap_s(perf_counter() - began, polls))
                polls += 1
                reply = await self._client.call("status", "GET", job_path("status", known), timeout_s=30)
        except asyncio.CancelledError:
            if known is not None:
                await asyncio.shield(self._cancel(known))
            raise
        if reply.status >= 300 or reply.job_status != "COMPLETED":
            raise ProbeError(f"{reply.job_status}: {describe(reply)}" if reply.job_status else describe(reply))
        return reply, reply.received_s - began

    async def _cancel(self, known: str) -> None:
        with contextlib.suppress(CallError):
            await self._client.call("cancel", "POST", job_path("cancel", known), timeout_s=5)

    def _note(self, what: str, problem: str | None) -> None:
        if problem is not None and self._failing[what] is None:
            self._say(f"{what}: {problem}")
        elif problem is None and self._failing[what] is not None:
            self._say(f"{what}: works again")
        self._failing[what] = problem


async def every(interval_s: float, act: Callable[[], Awaitable[object]]) -> None:
    """Call `act` at intervals until cancelled; one that takes longer delays the next and never overlaps it."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await act()
        await asyncio.sleep(max(0.0, due - loop.time()))
