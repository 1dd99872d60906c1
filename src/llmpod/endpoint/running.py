"""Base class of an endpoint of either kind: its start and its end in this event loop, and what tests ask of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from types import TracebackType
from typing import Any, Self

from llmpod.endpoint.api.control import ControlApi
from llmpod.endpoint.faults import Faults
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.observe.console import Console, forever
from llmpod.endpoint.observe.job_log import Journal
from llmpod.endpoint.options import Options


class RunningEndpoint(ABC):
    """One endpoint. Use as an async context manager; its workers end with it."""

    control: ControlApi[Any]
    fleet: Fleet[Any] | None  # None: workers are started by somebody else

    def __init__(self, options: Options) -> None:
        self.options = options
        self.console = Console(enabled=options.console)
        self.journal = Journal(options)
        self._tasks: list[asyncio.Task[None]] = []

    @abstractmethod
    async def start(self) -> None:
        """Opens the ports and starts the fleet. Raises StartError with one line that says what to change."""

    @abstractmethod
    async def _close_ports(self) -> None:
        """Closes what `start` opened."""

    @abstractmethod
    def _up(self) -> list[str]:
        """Ids of the workers that take work."""

    def _keep_running(self, loops: Iterable[Awaitable[None]]) -> None:
        self._tasks = [asyncio.create_task(forever(loop, self.console.report)) for loop in loops]

    async def close(self, *, graceful: bool = False) -> None:
        """Ends workers (`graceful`: SIGTERM first), closes the ports, and returns when every process is gone."""
        if self.fleet is not None:
            await (self.fleet.close() if graceful else self.fleet.abort())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_ports()
        await self.journal.close()
        self.console.flush()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ready(self, workers: int = 1, timeout_s: float = 60.0) -> list[str]:
        """Waits until so many workers take work; their ids. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while len(up := self._up()) < workers:  # noqa: ASYNC110 -- only tests wait here: no event is worth it
                await asyncio.sleep(0.02)
        return up

    def set_faults(self, **changes: object) -> Faults:
        """Turns knobs of `Faults`; the others stay."""
        return self.control.set_faults(changes)

    def kill_worker(self, worker_id: str) -> bool:
        """SIGKILL to a worker of the fleet."""
        return self.fleet is not None and self.fleet.kill(worker_id)
