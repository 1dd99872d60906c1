"""Health checks: asks every worker how it is, and ends those that stay unhealthy."""

from __future__ import annotations

import asyncio
from random import Random

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from llmpod.endpoint.balancer.pool import WORKER_HOST, HttpPool
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.faults import draw
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.options import Options


class HealthChecks:
    """GET HEALTH_CHECK_PATH on PORT_HEALTH, every `health_period_s` seconds and one at a time per worker."""

    def __init__(self, pool: HttpPool, fleet: Fleet[HttpWorker], options: Options, random: Random) -> None:
        self._pool = pool
        self._fleet = fleet
        self._options = options
        self._random = random
        self._open: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Checks until cancelled."""
        timeout = ClientTimeout(total=self._options.health_timeout_s)
        connector = TCPConnector(limit=0, force_close=True)
        async with ClientSession(timeout=timeout, connector=connector) as session:
            try:
                while True:
                    for worker in list(self._pool.workers.values()):
                        if worker.id in self._fleet.processes and worker.counted:
                            self._look(session, worker)
                    await asyncio.sleep(self._options.health_period_s)
            finally:
                for task in self._open.values():
                    task.cancel()

    def _look(self, session: ClientSession, worker: HttpWorker) -> None:
        since_s = worker.last_healthy_s
        limit_s = self._options.unhealthy_timeout_s
        if since_s is not None and self._pool.clock() - since_s > limit_s:
            self._fleet.retire(worker, f"no healthy check for {limit_s:g} s")
        elif worker.id not in self._open:
            task = asyncio.create_task(self._check(session, worker))
            self._open[worker.id] = task
            task.add_done_callback(lambda _: self._open.pop(worker.id, None))

    async def _check(self, session: ClientSession, worker: HttpWorker) -> None:
        status: int | None = None
        started_s = self._pool.clock()
        outcome = draw(self._pool.faults, "ping", self._random)
        if isinstance(outcome, int):
            status = outcome
        elif outcome is None:
            url = f"http://{WORKER_HOST}:{worker.health_port}{self._options.health_check_path}"
            try:
                async with session.get(url, allow_redirects=False) as response:
                    status = response.status
            except (ClientError, OSError, ValueError):  # TimeoutError is an OSError
                status = None
        self._pool.see(worker, status, round(1000 * (self._pool.clock() - started_s), 1))
