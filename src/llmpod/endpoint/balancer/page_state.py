"""What the page of a load balancer shows: requests in flight, workers with their health checks, latencies."""

from __future__ import annotations

import time
from itertools import islice

from llmpod.endpoint.api.control import ended_since, worker_row
from llmpod.endpoint.balancer.pool import HttpPool
from llmpod.endpoint.balancer.traffic import Ending, Traffic
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.options import Options

REQUESTS_SHOWN = 50


class PageState:
    """Reads pool and traffic; keeps nothing of its own."""

    def __init__(self, pool: HttpPool, traffic: Traffic, fleet: Fleet[HttpWorker], options: Options) -> None:
        self._pool = pool
        self._traffic = traffic
        self._fleet = fleet
        self._options = options

    def read(self, after: str = "") -> dict[str, object]:
        """GET /control/state. `ended` has the requests that ended after that number."""
        traffic = self._traffic
        now = self._pool.clock()
        fresh = ended_since(after, traffic.ended_count)
        running = list(islice(reversed(traffic.open_now.values()), REQUESTS_SHOWN // 2))
        ended = islice(reversed(traffic.ended), REQUESTS_SHOWN - len(running))
        points = islice(traffic.ended, max(0, len(traffic.ended) - fresh), None)
        return {
            "kind": self._options.kind,
            "endpoint": self._options.endpoint_id,
            "time": time.time(),
            "in_flight": self._pool.in_flight,
            "waiting": len(self._pool.waiting),
            "totals": dict(traffic.totals),
            "command": self._options.command_line,
            "faults": self._pool.faults.model_dump(),
            "workers": [self._row(worker, now) for worker in self._pool.workers.values()],
            "requests": [exchange.row() for exchange in (*running, *ended)],
            "ended_count": traffic.ended_count,
            "ended": [
                {
                    "at": one.at + (one.total_ms or 0) / 1000,
                    "first_byte_ms": one.first_byte_ms,
                    "total_ms": one.total_ms,
                }
                for one in points
                if one.ending is Ending.ANSWERED
            ],
        }

    def _row(self, worker: HttpWorker, now: float) -> dict[str, object]:
        return worker_row(worker, self._fleet, now) | {
            "port": worker.port,
            "health_port": worker.health_port,
            "in_flight": worker.in_flight,
            "health": worker.health.value,
            "health_status": worker.health_status,
            "health_ms": worker.health_ms,
            "cold_start_ms": worker.cold_start_ms,
        }
