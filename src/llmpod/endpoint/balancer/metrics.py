"""Prometheus metrics of a load balancer (/metrics of its page's port)."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llmpod.endpoint.balancer.pool import HttpPool
from llmpod.endpoint.balancer.traffic import Ending, Exchange, Traffic
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.observe.metrics import EndpointMetrics


class Metrics(EndpointMetrics):
    """Metrics of a load balancer."""

    def __init__(self, pool: HttpPool, traffic: Traffic, fleet: Fleet[HttpWorker]) -> None:
        super().__init__("llmpod_balancer")
        self._pool = pool
        self._traffic = traffic
        self._fleet = fleet
        self._wait = self._histogram("wait_seconds", "Arrival of a request to its hand-over to a worker")
        self._first = self._histogram("first_byte_seconds", "Arrival of a request to the first byte of its answer")
        self._total = self._histogram("request_seconds", "Arrival of a request to the end of its answer")
        traffic.listeners.append(self._on_end)

    def _on_end(self, exchange: Exchange) -> None:
        if exchange.ending is not Ending.ANSWERED or exchange.wait_ms is None or exchange.total_ms is None:
            return
        self._wait.observe(exchange.wait_ms / 1000)
        self._total.observe(exchange.total_ms / 1000)
        if exchange.first_byte_ms is not None:
            self._first.observe(exchange.first_byte_ms / 1000)

    def collect(self) -> Iterable[Metric]:
        ended = CounterMetricFamily("llmpod_balancer_requests", "Requests that ended, by how", labels=["ending"])
        for ending in Ending:
            ended.add_metric([ending.value.replace(" ", "_")], self._traffic.totals[ending.value])
        yield ended
        yield GaugeMetricFamily("llmpod_balancer_in_flight", "Requests on a worker", self._pool.in_flight)
        yield GaugeMetricFamily("llmpod_balancer_waiting", "Requests without a worker", len(self._pool.waiting))
        yield from self._workers(self._pool, self._fleet)
