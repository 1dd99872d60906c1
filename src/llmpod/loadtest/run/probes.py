"""Probes beside the jobs: samples of /health, and the client's own event loop lag and CPU."""

import asyncio
import time
from array import array
from typing import Any

from llmpod.loadtest.intake import line
from llmpod.loadtest.model.health import deserted, health_sample, live_workers
from llmpod.loadtest.run.client import CallError
from llmpod.loadtest.run.context import RunContext, describe
from llmpod.loadtest.stats import nearest_rank
from llmpod.loadtest.units import show_duration, utc_now

# A worker that is being placed shows as initializing within seconds; after this long, none is coming.
DESERTED_S = 60.0


class HealthWatch:
    """Asks /health every `interval_s`, writes each answer to disk, and keeps the last."""

    def __init__(self, context: RunContext, interval_s: float) -> None:
        self.samples: list[dict[str, Any]] = []
        self.problem: str | None = None
        self.worker_s = 0.0  # live and initializing worker time so far
        self.unanswered = 0  # looks that brought no counts
        self.deserted_s = 0.0  # for so long jobs have waited without a worker live or starting
        self.alarm: str | None = None
        self._deserted_since_ms: float | None = None
        self._context = context
        self._interval_s = interval_s

    @property
    def live(self) -> int | None:
        return live_workers(self.samples[-1]["workers"]) if self.samples else None

    async def ask(self) -> dict[str, Any] | None:
        """One sample. None, with `problem` set, when there is no answer."""
        try:
            reply = await self._context.client.call("health", "GET", "/health", timeout_s=10, quick=True)
        except CallError as error:
            self.problem = error.detail
            return None
        counts = health_sample(reply.body) if reply.status < 300 else None
        if counts is None:
            self.problem = describe(reply)
            return None
        sample = {"t_ms": round(self._context.clock.ms(reply.received_s), 1), "at": utc_now(), **counts}
        if self.samples:
            before = self.samples[-1]
            workers = (live_workers(before["workers"]) or 0) + before["workers"].get("initializing", 0)
            self.worker_s += workers * (sample["t_ms"] - before["t_ms"]) / 1000
        self.samples.append(sample)
        self._watch_for_desertion(sample)
        self._context.journal.health(sample)
        return sample

    def _watch_for_desertion(self, sample: dict[str, Any]) -> None:
        if not deserted(sample):
            self._deserted_since_ms, self.deserted_s = None, 0.0
            return
        if self._deserted_since_ms is None:
            self._deserted_since_ms = sample["t_ms"]
        self.deserted_s = (sample["t_ms"] - self._deserted_since_ms) / 1000
        if self.deserted_s >= DESERTED_S:
            self.alarm = (
                f"for {show_duration(self.deserted_s)} no worker has been live or starting, with jobs in the queue "
                "(max workers 0? no GPU free?)"
            )

    async def run(self) -> None:
        """Asks until it is cancelled; with an interval of 0 it asks nothing."""
        failed = 0
        if self._interval_s <= 0:
            return
        while True:
            try:
                seen = await self.ask() is not None
            except Exception as error:  # noqa: BLE001 - the watch goes on; a full disk is the run's to report
                self.problem, seen = f"{type(error).__name__}: {line(error)}", False
            self.unanswered += not seen
            failed = 0 if seen else failed + 1
            # A service without /health is not asked over and over.
            await asyncio.sleep(self._interval_s if failed < 3 else max(30.0, self._interval_s))

    async def settled(self, limit_s: float) -> bool | None:
        """Waits until the queue is empty and nothing runs. False after `limit_s`; None when /health does not say."""
        until = asyncio.get_running_loop().time() + limit_s
        while True:
            sample = await self.ask()
            if sample is None or "inQueue" not in sample["jobs"]:
                return None
            if sample["jobs"]["inQueue"] + sample["jobs"].get("inProgress", 0) == 0:
                return True
            if asyncio.get_running_loop().time() >= until:
                return False
            await asyncio.sleep(min(1.0, self._interval_s))


class LagWatch:
    """Lag of this process's event loop, which is added to every latency it measures."""

    STEP_S = 0.02

    def __init__(self) -> None:
        self._late_ms = array("f")
        self._mark = 0
        self._cpu_mark, self._wall_mark = time.process_time(), time.perf_counter()

    async def run(self) -> None:
        while True:
            due = time.perf_counter() + self.STEP_S
            await asyncio.sleep(self.STEP_S)
            self._late_ms.append(max(0.0, (time.perf_counter() - due) * 1000))

    def facts(self) -> dict[str, float]:
        """Since the last call: p50, p99 and maximum lateness, and the share of one core this process used."""
        late = sorted(self._late_ms[self._mark :])
        self._mark = len(self._late_ms)
        cpu, wall = time.process_time(), time.perf_counter()
        share = (cpu - self._cpu_mark) / max(wall - self._wall_mark, 1e-9)
        self._cpu_mark, self._wall_mark = cpu, wall
        if not late:
            return {"cpu_share": round(share, 3)}
        return {
            "loop_lag_p50_ms": round(nearest_rank(late, 50), 2),
            "loop_lag_p99_ms": round(nearest_rank(late, 99), 2),
            "loop_lag_max_ms": round(late[-1], 2),
            "cpu_share": round(share, 3),
        }
