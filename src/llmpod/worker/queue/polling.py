"""Polls RunPod for jobs; requests at most as many as there are free slots.

One call at a time is enough where RunPod returns as many jobs as were requested. Where it returns fewer although more
are queued (which of the two it does is not documented), every job would cost a round trip. So when answers are fast and
short, several calls share the free slots until one of them finds the queue empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llmpod.worker.event_log import Emit, describe
from llmpod.worker.queue import sdk

MOST_ABREAST = 4
HALF_CLOSE_S = 3.0
"""How long a half-closed call may still return a job before it is cancelled."""
QUICK_S = 0.05
"""An empty answer to a long poll that arrives sooner counts as a failure: back off."""
QUEUED_S = 0.25
"""A job that arrives later was not yet queued when the poll began."""

Fetch = Callable[[Any, int], Awaitable[list[dict[str, Any]] | None]]


@dataclass
class Poller:
    """The job-take calls of one worker. `run` is a task's body, and the object is created in its event loop."""

    free: Callable[[], int]  # how many more jobs the worker may hold now
    fetch: Fetch  # the SDK's call, with a session and a number of jobs
    begin: Callable[[Any], None]  # is called with each job
    emit: Emit
    shutdown: asyncio.Event
    timeout_s: float  # of one call

    def __post_init__(self) -> None:
        self._sessions = [sdk.PollSession() for _ in range(MOST_ABREAST)]
        self._wakeup = asyncio.Event()
        self._abreast = 1  # calls that may be open at once
        self._calls = 0
        self._asked = 0  # jobs they may return
        self._short = 0  # consecutive answers that were fast and had fewer jobs than requested

    async def run(self) -> None:
        """Poll until shutdown."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as loops:
            for number, session in enumerate(self._sessions):
                await stack.enter_async_context(session.client)
                loops.create_task(self._poll_loop(number, session))

    def wake(self) -> None:
        """Poll again: a slot has become free."""
        self._wakeup.set()

    def half_close(self) -> None:
        """Close the sending side of the calls: RunPod returns no further jobs, and those already sent still arrive."""
        for session in self._sessions:
            session.half_close()
        self._wakeup.set()

    async def _poll_loop(self, number: int, session: sdk.PollSession) -> None:
        backoff = Backoff()
        while not self.shutdown.is_set():
            wanted = self._share(number)
            if wanted <= 0:
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            asked = time.monotonic()
            self._calls += 1
            self._asked += wanted
            try:
                jobs = await self._poll(session, wanted)
                for job in jobs:
                    self.begin(job)
            except sdk.TooManyRequests:
                backoff.lengthen(at_least_s=1.0)
            except Exception as error:  # noqa: BLE001 - polling continues after any error
                if not self.shutdown.is_set():
                    self.emit("take_failed", level="warning", cause=describe(error))
                backoff.lengthen()
            else:
                took_s = time.monotonic() - asked
                self._adapt(wanted, len(jobs), took_s)
                if jobs or took_s > QUICK_S:
                    backoff.reset()
                else:
                    backoff.lengthen()
            finally:
                self._calls -= 1
                self._asked -= wanted
            await backoff.wait(self.shutdown)

    def _share(self, number: int) -> int:
        """How many jobs this loop should request: its share of the free slots that no call has requested."""
        if number >= self._abreast:
            return 0
        unasked = self.free() - self._asked
        return -(-unasked // max(1, self._abreast - self._calls))

    def _adapt(self, wanted: int, got: int, took_s: float) -> None:
        if not got or took_s > QUEUED_S:
            self._abreast, self._short = 1, 0
            return
        self._short = self._short + 1 if got < wanted else 0
        if self._short > 1 and self._abreast == 1:
            self._abreast = MOST_ABREAST
            self._wakeup.set()

    async def _poll(self, session: sdk.PollSession, wanted: int) -> list[dict[str, Any]]:
        """One long poll. It is only cancelled after it has been half-closed: see `sdk.PollSession`."""
        poll = asyncio.ensure_future(self.fetch(session.client, wanted))
        try:
            if not (await asyncio.wait((poll,), timeout=self.timeout_s))[0]:
                session.half_close()
                await asyncio.wait((poll,), timeout=HALF_CLOSE_S)
                if not self.shutdown.is_set():
                    session.resume()
            return (await poll if poll.done() else None) or []
        finally:
            poll.cancel()


class Backoff:
    """Exponential backoff with jitter: no delay after a success, doubled after every failure."""

    SHORTEST_S, LONGEST_S = 0.05, 5.0

    def __init__(self) -> None:
        self._seconds = 0.0

    def reset(self) -> None:
        self._seconds = 0.0

    def lengthen(self, at_least_s: float = SHORTEST_S) -> None:
        self._seconds = min(self.LONGEST_S, max(2 * self._seconds, at_least_s, self.SHORTEST_S))

    async def wait(self, interrupted: asyncio.Event) -> None:
        """Wait, unless `interrupted` is set meanwhile."""
        if self._seconds:
            seconds = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
            waiting = asyncio.create_task(interrupted.wait())
            await asyncio.wait((waiting,), timeout=seconds)
            waiting.cancel()
