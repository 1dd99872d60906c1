"""Notices an engine that is dead, or alive but silent, before the queue does.

A worker without an engine fails every job it takes within a millisecond, and so empties a queue that other workers
could serve. The engine's own signs are read: whether its process is gone, and when it last finished a step while
requests were waiting for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from llmpod.worker.errors import Code, JobError

PERIOD_S = 0.25


class Watched(Protocol):
    """What the watchdog looks at."""

    @property
    def dead(self) -> bool:
        """Whether the engine's processes have failed."""

    @property
    def unfinished(self) -> int:
        """Requests the engine has not finished."""

    @property
    def last_step(self) -> float:
        """When the engine last did something, in monotonic seconds."""


class Watchdog:
    """Looks at an engine until it fails, then says so once."""

    def __init__(self, engine: Watched, stall_s: float, on_failure: Callable[[JobError], None]) -> None:
        """`stall_s`: ENGINE_STALL_SECONDS; 0 never takes silence for failure."""
        self._engine = engine
        self._stall_s = stall_s
        self._on_failure = on_failure
        self._busy_since: float | None = None

    async def run(self) -> None:
        """Watch until a failure is found."""
        while (failure := self.look(time.monotonic())) is None:  # noqa: ASYNC110 - failing sets no event
            await asyncio.sleep(PERIOD_S)
        self._on_failure(failure)

    def look(self, now: float) -> JobError | None:
        """The engine's failure, if it has failed. Silence counts from the first look at which there was work."""
        if self._engine.dead:
            return JobError(Code.ENGINE_DEAD, "The engine died.")
        if not self._engine.unfinished:
            self._busy_since = None
            return None
        if self._busy_since is None:
            self._busy_since = now
        silent_s = now - max(self._busy_since, self._engine.last_step)
        if self._stall_s and silent_s > self._stall_s:
            return JobError(
                Code.ENGINE_STALLED,
                f"The engine has {self._engine.unfinished} requests and produced nothing for {silent_s:.0f} s.",
            )
        return None
