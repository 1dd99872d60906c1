"""Pool of HTTP workers: who gets a request, who waits for a worker, what health checks change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmpod.endpoint.balancer.routing import Affinity, Health, choose, health_of
from llmpod.endpoint.balancer.worker import HttpWorker, free_ports
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.autoscaler import request_count_target
from llmpod.endpoint.state.fleet_worker import WorkerPool

WORKER_HOST = "127.0.0.1"
"""Where workers are reached. They listen on all addresses, as in a container, or on this one."""


def stopping() -> ApiError:
    return ApiError(503, "the endpoint stops")


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for a worker."""

    affinity: Affinity | None
    given: asyncio.Future[HttpWorker]


class HttpPool(WorkerPool[HttpWorker]):
    """No HTTP here: proxy.py and health.py turn it into these calls."""

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        super().__init__(options, clock)
        self.waiting: dict[Waiter, None] = {}
        self._stopped = False
        self._turns = 0

    # ------------------------------------------------------------------ what the fleet tells
    def add(self, worker_id: str, *, owned: bool) -> HttpWorker:
        """A worker with ports of its own, before its process starts."""
        ports = free_ports(WORKER_HOST, 2)
        health_port = ports[0] if self.options.health_port == "same" else ports[1]
        lines = self.options.worker_log_lines
        return self._keep(HttpWorker(worker_id, owned, self.clock(), lines, port=ports[0], health_port=health_port))

    def drain(self, worker: HttpWorker) -> None:
        """It gets no more requests."""
        worker.draining = True

    def lose(self, worker: HttpWorker, reason: str) -> None:
        """It is gone; who waits for it alone is told."""
        if worker.dead is None:
            worker.dead = reason
            self.drain(worker)
            self.dispatch()

    # ------------------------------------------------------------------ requests
    @property
    def in_flight(self) -> int:
        return sum(worker.in_flight for worker in self.workers.values())

    async def acquire(self, affinity: Affinity | None) -> HttpWorker:
        """A worker for one request, which `release` has to follow. Waits for one where none is free.

        Raises ApiError: 400 (no_worker_status) after worker_wait_s, 429 where too many wait, 404 where the only worker
        that will do is gone, 503 after `stop`.
        """
        options = self.options
        if self._stopped:
            raise stopping()
        strict = affinity is not None and affinity.strict
        waiter = Waiter(affinity, asyncio.get_running_loop().create_future())
        self.waiting[waiter] = None
        try:
            self.dispatch()
            if not waiter.given.done() and len(self.waiting) > options.waiting_max:
                raise ApiError(429, f"{options.waiting_max} requests are waiting for a worker")
            async with asyncio.timeout(options.affinity_wait_s if strict else options.worker_wait_s):
                return await waiter.given
        except TimeoutError:
            if waiter.given.done() and not waiter.given.cancelled():
                return waiter.given.result()  # given in the moment in which the time was over
            message = "timed out waiting for worker" if strict else "no workers available"
            raise ApiError(options.no_worker_status, message) from None
        except asyncio.CancelledError:
            if waiter.given.done() and not waiter.given.cancelled() and waiter.given.exception() is None:
                self.release(waiter.given.result(), answered=False)
            raise
        finally:
            self.waiting.pop(waiter, None)

    def stop(self) -> None:
        """The endpoint ends: requests without a worker are told, and so are those that still come."""
        self._stopped = True
        for waiter in self.waiting:
            if not waiter.given.done():
                waiter.given.set_exception(stopping())

    def release(self, worker: HttpWorker, *, answered: bool) -> None:
        """The end of a request that `acquire` gave to a worker; the next that waits may go."""
        worker.in_flight -= 1
        worker.done += answered
        if not worker.in_flight:
            worker.idle_since_s = self.clock()
        self.dispatch()

    def dispatch(self) -> None:
        """Gives waiting requests, oldest first, to workers that can take them."""
        full = False
        for waiter in list(self.waiting):
            affinity = waiter.affinity
            if waiter.given.done() or (full and affinity is None):
                continue
            if affinity is not None and affinity.strict and self._gone(affinity.worker_id):
                waiter.given.set_exception(ApiError(404, "affinity_worker_gone"))
            else:
                chosen = choose(self.workers.values(), self.options.worker_capacity, affinity)
                if chosen is None:
                    full = full or affinity is None
                    continue
                waiter.given.set_result(self._take(self.workers[chosen]))
            del self.waiting[waiter]

    def _gone(self, worker_id: str) -> bool:
        worker = self.workers.get(worker_id)
        return worker is None or not worker.counted

    def _take(self, worker: HttpWorker) -> HttpWorker:
        self._turns += 1
        worker.turn = self._turns
        worker.in_flight += 1
        worker.idle_since_s = None
        return worker

    # ------------------------------------------------------------------ health checks
    def see(self, worker: HttpWorker, status: int | None, took_ms: float) -> None:
        """The result of a health check: an HTTP code, or None where there was no answer."""
        now = self.clock()
        worker.health_status, worker.health_ms = status, took_ms
        worker.health = health_of(status, started=worker.started)
        if worker.health is Health.INITIALIZING and worker.initializing_s is None:
            worker.initializing_s = now
        if worker.health is Health.HEALTHY:
            worker.failures = 0
            worker.unhealthy = None
            worker.last_healthy_s = now
            if not worker.started:
                worker.started = True
                worker.healthy_s = worker.idle_since_s = now
            self.dispatch()
            return
        worker.failures += 1
        if worker.started and worker.failures >= self.options.health_failures:
            worker.unhealthy = f"health check: {'no answer' if status is None else status}"

    # ------------------------------------------------------------------ scaling
    def target(self, live: Sequence[HttpWorker], least: int, most: int) -> int:
        """REQUEST_COUNT over the requests that wait and those in flight."""
        return request_count_target(len(self.waiting), self.in_flight, self.options.scaler_value, least, most)

    def surplus(self, live: Sequence[HttpWorker], target: int, least: int, most: int) -> list[HttpWorker]:
        """Workers above the target that had nothing to do for idleTimeout, and those above workersMax."""
        return self._idle(live, target, most, self.options.idle_timeout_s)
