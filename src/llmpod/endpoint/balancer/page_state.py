"""What the page of a load balancer shows: requests in flight, workers with their health checks, latencies."""

from __future__ import annotations

from itertools import islice

from llmpod.endpoint.api.page_state import PageState
from llmpod.endpoint.balancer.pool import HttpPool
from llmpod.endpoint.balancer.traffic import Ending, Traffic
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.fleet.fleet import Fleet

REQUESTS_SHOWN = 50
COLUMNS = ("port", "health_port", "in_flight", "health", "health_status", "health_ms", "cold_start_ms")


class BalancerPage(PageState[HttpWorker]):
    """Reads pool and traffic; keeps nothing of its own."""

    def __init__(self, pool: HttpPool, traffic: Traffic, fleet: Fleet[HttpWorker] | None) -> None:
        super().__init__(pool, fleet)
        self._pool = pool
        self._traffic = traffic

    def _shown(self, after: str) -> dict[str, object]:
        traffic = self._traffic
        running = list(islice(reversed(traffic.open_now.values()), REQUESTS_SHOWN // 2))
        ended = islice(reversed(traffic.ended.kept), REQUESTS_SHOWN - len(running))
        return {
            "in_flight": self._pool.in_flight,
            "waiting": len(self._pool.waiting),
            "totals": dict(traffic.totals),
            "requests": [exchange.row() for exchange in (*running, *ended)],
            "ended_count": traffic.ended.count,
            "ended": [
                {
                    "at": one.at + (one.total_ms or 0) / 1000,
                    "first_byte_ms": one.first_byte_ms,
                    "total_ms": one.total_ms,
                }
                for one in traffic.ended.since(after)
                if one.ending is Ending.ANSWERED
            ],
        }

    def _columns(self, worker: HttpWorker, now: float) -> dict[str, object]:
        return {name: getattr(worker, name) for name in COLUMNS}
