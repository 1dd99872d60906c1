"""Measures for how long this process keeps its own event loop from going on."""

from __future__ import annotations

import asyncio
import time
from asyncio.events import Handle
from types import TracebackType
from typing import Any, Self

TICK_S = 0.01


class LoopWatch:
    """The longest time for which the loop stood still, by what this process did and not by what the machine had to do.

    Two measures, of which the larger counts: the processor time of one callback in the loop's thread; and the time by
    which a ticker was late, as far as this process was computing meanwhile (another thread may hold the interpreter).
    """

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.worst_of: object = None
        self.now: object = None  # what is going on, for whoever reads `worst_of`
        self._run = Handle._run
        self._ticker: asyncio.Task[None] | None = None

    def _saw(self, seconds: float) -> None:
        if seconds > self.worst_s:
            self.worst_s, self.worst_of = seconds, self.now

    async def _tick(self) -> None:
        while True:
            wall, worked = time.monotonic(), time.process_time()
            await asyncio.sleep(TICK_S)
            self._saw(min(time.monotonic() - wall - TICK_S, time.process_time() - worked))

    async def __aenter__(self) -> Self:
        watch, run = self, self._run

        def timed(handle: Handle) -> Any:
            began = time.thread_time()
            try:
                return run(handle)
            finally:
                watch._saw(time.thread_time() - began)

        Handle._run = timed  # type: ignore[method-assign] # what the loop calls for each callback
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Handle._run = self._run  # type: ignore[method-assign]
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.wait({self._ticker})
