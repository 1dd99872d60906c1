"""Engine watchdog: detects an engine that is dead, stalled or does not respond.

A worker without an engine fails every job within a millisecond, and so empties a queue that other workers could serve.
Three signs are checked: whether the engine's process has ended, when it last finished a step while requests were
pending, and whether it answers a probe. Probes are sent with and without jobs: an engine that no longer receives
requests shows no other sign when its clients cancel before it has been stalled for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from llmpod.worker.engine.engine import Engine
from llmpod.worker.errors import Code, JobError

PERIOD_S = 0.25
QUESTION_PERIOD_S = 10.0
"""Seconds between two probes, or a quarter of ENGINE_STALL_SECONDS where that is less."""


class Watchdog:
    """Checks an engine periodically and reports its failure once."""

    def __init__(self, engine: Engine, stall_s: float, on_failure: Callable[[JobError], None]) -> None:
        """`stall_s`: ENGINE_STALL_SECONDS; 0 disables the check for stalls."""
        self._engine = engine
        self._stall_s = stall_s
        self._on_failure = on_failure
        self._busy_since: float | None = None
        self._question: asyncio.Task[None] | None = None
        self._asked = 0.0  # when the last probe was sent, in monotonic seconds

    async def run(self) -> None:
        """Check until a failure is found."""
        try:
            while (failure := self.look(time.monotonic())) is None:
                self._ask(time.monotonic())
                await asyncio.sleep(PERIOD_S)
            self._on_failure(failure)
        finally:
            if self._question is not None:
                self._question.cancel()

    def look(self, now: float) -> JobError | None:
        """The engine's failure, if any. A stall is measured from the first check at which there was work."""
        if self._engine.dead:
            return JobError(Code.ENGINE_DEAD, "The engine died.")
        if not self._stall_s:
            return None
        if self._question is not None and not self._question.done() and now - self._asked > self._stall_s:
            return JobError(Code.ENGINE_STALLED, f"The engine has not answered for {now - self._asked:.0f} s.")
        if not self._engine.unfinished:
            self._busy_since = None
            return None
        if self._busy_since is None:
            self._busy_since = now
        silent_s = now - max(self._busy_since, self._engine.last_step)
        if silent_s > self._stall_s:
            return JobError(
                Code.ENGINE_STALLED,
                f"The engine has {self._engine.unfinished} requests and produced nothing for {silent_s:.0f} s.",
            )
        return None

    def _ask(self, now: float) -> None:
        """Send the next probe when the last one was answered and it is due."""
        if self._question is not None and not self._question.done():
            return
        if self._stall_s and (self._question is None or now - self._asked >= min(QUESTION_PERIOD_S, self._stall_s / 4)):
            self._question = asyncio.create_task(self._answer())
            self._asked = now

    async def _answer(self) -> None:
        with contextlib.suppress(JobError):  # the engine is dead, which `look` finds
            await self._engine.respond()
