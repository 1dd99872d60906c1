"""Base class of an endpoint of either kind: its start and its end in this event loop, and what tests ask of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from random import Random
from types import TracebackType
from typing import Any, Generic, Self

from aiohttp import web

from llmpod.endpoint.api.control import ControlApi
from llmpod.endpoint.api.router import Gate
from llmpod.endpoint.api.server import listen
from llmpod.endpoint.environ import API_KEY_VARIABLE, is_loopback
from llmpod.endpoint.errors import StartError
from llmpod.endpoint.faults import Faults
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.fleet.process import check_command
from llmpod.endpoint.observe.console import Console, http_log
from llmpod.endpoint.observe.job_log import Journal
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.fleet_worker import W, WorkerPool


class RunningEndpoint(ABC, Generic[W]):
    """One endpoint. Use as an async context manager; its workers end with it."""

    control: ControlApi[W]

    def __init__(
        self, pool: WorkerPool[W], random: Random, worker_keys: set[str], *, sign: str, start_timeout_s: float
    ) -> None:
        """`sign` and `start_timeout_s`: see `Fleet`."""
        self.options: Options = pool.options
        self.console = Console(enabled=self.options.console)
        self.journal = Journal(self.options)
        self.fleet: Fleet[W] | None = None  # None: workers are started by somebody else
        if self.options.fleet:
            self.fleet = Fleet(
                pool, self._environment, self.console.report, self.console.log, random,
                sign=sign, start_timeout_s=start_timeout_s,
            )  # fmt: skip
        self.port = self.page_port = self.options.port
        self._pool = pool
        self._gate = Gate(self.options, worker_keys)
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    @abstractmethod
    def url(self) -> str:
        """What its clients call."""

    @property
    def page_url(self) -> str:
        return self._address(self.page_port) + "/"

    def _address(self, port: int) -> str:
        """http://HOST:PORT as a client on this machine reaches it."""
        host = self.options.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 -- compared, not bound
            host = "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @abstractmethod
    async def _open(self) -> list[Coroutine[Any, Any, None]]:
        """Opens the ports; returns the loops that are to run beside those of fleet, journal and console."""

    @abstractmethod
    def _environment(self, worker_id: str) -> dict[str, str]:
        """The environment of a worker's process."""

    async def start(self) -> None:
        """Opens the ports and starts the fleet. Raises StartError with one line that says what to change."""
        options = self.options
        if not is_loopback(options.host) and not options.api_key:
            raise StartError(f"--host {options.host} is not loopback: set --api-key or {API_KEY_VARIABLE} first")
        if self.fleet is not None:
            check_command(options.command, options.cwd, options.env)
        try:
            loops = await self._open()
        except BaseException:
            await self._close_ports()
            raise
        loops += [self.journal.run(), self.console.run()]
        if self.fleet is not None:
            loops.append(self.fleet.run())
        self._tasks = [asyncio.create_task(self._forever(loop)) for loop in loops]

    async def _listen(
        self, routes: Iterable[web.AbstractRouteDef], port: int, *, flag: str, auto_decompress: bool = True
    ) -> int:
        report = self.console.report
        runner, port = await listen(
            routes, self.options.host, port, report, http_log(report), flag=flag, auto_decompress=auto_decompress
        )
        self._runners.append(runner)
        return port

    async def _forever(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except Exception as error:
            self.console.report(f"internal error: {error!r}")
            raise

    async def _close_ports(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

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

    def _up(self) -> list[str]:
        return [worker.id for worker in self._pool.workers.values() if worker.started and worker.takes_work]

    def worker(self, worker_id: str) -> W:
        """Raises KeyError."""
        return self._pool.workers[worker_id]

    def set_faults(self, **changes: object) -> Faults:
        """Turns knobs of `Faults`; the others stay."""
        return self.control.set_faults(changes)

    def kill_worker(self, worker_id: str) -> bool:
        """SIGKILL to a worker of the fleet."""
        return self.fleet is not None and self.fleet.kill(worker_id)
