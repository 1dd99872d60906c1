"""Life of a serving worker, whichever way its jobs come: engine start, serving, failure, signals, exit.

Order: start the engine -> serve jobs until a signal or an engine failure -> drain -> shut the engine down.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from types import FrameType

from llmpod.worker import shutdown
from llmpod.worker.engine.watchdog import Watchdog
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.capacity import report_crowding
from llmpod.worker.worker import Worker
from llmpod.worker.worker_start import WorkerStart

LOADING_EXIT_S = 4.0
"""Deadline of the graceful exit after a signal while the model loads."""
ENGINE_END_S = 20.0
"""Deadline of the exit after the last job, with an engine to shut down."""


class Lifecycle(ABC):
    """Base class of what serves jobs. A subclass has `serve`, and `stop`, which ends it."""

    worker: Worker  # from `serve` on

    def __init__(self, start: WorkerStart) -> None:
        self.worker_start = start
        self.failure: JobError | None = None
        self.owns_process = False  # whether the process may be ended, its children included
        self._loading = True
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @abstractmethod
    async def serve(self) -> None:
        """Serve jobs until `stop`, then drain."""

    @abstractmethod
    def stop(self) -> None:
        """Take no further jobs, and have `serve` return. Called in the event loop."""

    async def run(self) -> None:
        """Start the engine, serve jobs until shutdown, shut the engine down.

        Raises:
            SystemExit: 1, when the engine failed.
        """
        self._loop = asyncio.get_running_loop()
        worker: Worker | None = None
        try:
            worker = self.worker = await self.worker_start.run()
            self._loading = False
            report_crowding(worker.slots.capacity, worker.settings.max_concurrency, worker.emit)
            worker.on_engine_death = self._engine_died
            watchdog = Watchdog(worker.engine, worker.settings.engine_stall_seconds, self.fail)
            watching = asyncio.create_task(watchdog.run())
            try:
                await self.serve()
            finally:
                watching.cancel()
        finally:
            if self.owns_process:
                shutdown.leave_within(ENGINE_END_S, 1 if self.failure or self._loading else 0)
                if self.failure is not None:
                    shutdown.end_children()  # a hung engine does not react to a shutdown request
            if worker is not None:
                worker.engine.shutdown()
        if self.failure is not None:
            self.worker_start.emit(
                "fatal",
                level="error",
                cause=self.failure.message,
                cure="RunPod replaces this worker; the engine's own log lines above have the reason.",
            )
            raise SystemExit(1)

    def fail(self, failure: JobError) -> None:
        """Handle an engine failure: take no further jobs, and exit once running ones have been reported."""
        if self.failure is None:
            self.failure = failure
            self.stop()

    def _engine_died(self) -> None:
        self.fail(JobError(Code.ENGINE_DEAD, "The engine died."))

    def handle_shutdown(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT: the first shuts down gracefully, the second exits at once.

        While the model loads there are no jobs, and the first exits.
        """
        self._signals += 1
        if self._loading:
            shutdown.leave_within(LOADING_EXIT_S, 0)
            shutdown.end_children()
            raise SystemExit(0)
        if self._signals > 1:
            shutdown.leave_now(128 + signum)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)  # wakes the loop, which a plain call would not
