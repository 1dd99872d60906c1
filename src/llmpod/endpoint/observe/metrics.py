"""Prometheus metrics (/metrics), read from the store on request."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.fleet_worker import WorkerPool
from llmpod.endpoint.state.job import TERMINAL, Job, JobState
from llmpod.endpoint.state.store import JobStore
from llmpod.endpoint.state.worker import Worker

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class EndpointMetrics(Collector):
    """Counts come from the records, so that a scrape costs and a job does not; only histograms follow each job."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @abstractmethod
    def collect(self) -> Iterable[Metric]:
        """The counts as they are now."""

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, namespace=self._namespace, registry=self._registry, buckets=BUCKETS_S)

    def _workers(self, pool: WorkerPool[Any], fleet: Fleet[Any] | None) -> Iterator[Metric]:
        workers = GaugeMetricFamily(f"{self._namespace}_workers", "Workers by state", labels=["state"])
        for name, count in pool.counts().items():
            workers.add_metric([name], count)
        yield workers
        if fleet is not None:
            yield CounterMetricFamily(f"{self._namespace}_worker_starts", "Worker processes started", fleet.starts)
            yield CounterMetricFamily(f"{self._namespace}_worker_crashes", "Workers that ended unasked", fleet.crashes)


class Metrics(EndpointMetrics):
    """Metrics of a queue."""

    def __init__(self, store: JobStore, broker: Broker, fleet: Fleet[Worker] | None) -> None:
        super().__init__("llmpod_endpoint")
        self._store = store
        self._broker = broker
        self._fleet = fleet
        self._delay = self._histogram("delay_seconds", "Time in the queue, cold start included")
        self._execution = self._histogram("execution_seconds", "Time on a worker")
        self._first = self._histogram("first_chunk_seconds", "Submission to first stream chunk")
        store.listeners.append(self._on_transition)

    def _on_transition(self, job: Job, was: JobState | None, reason: str) -> None:
        if reason != "done" or job.taken_s is None or job.finished_s is None:
            return
        self._delay.observe(job.taken_s - job.submitted_s)
        self._execution.observe(job.finished_s - job.taken_s)
        if job.first_chunk_s is not None:
            self._first.observe(job.first_chunk_s - job.submitted_s)

    def collect(self) -> Iterable[Metric]:
        totals = self._store.totals
        ended = CounterMetricFamily("llmpod_endpoint_jobs", "Jobs that ended, by final state", labels=["state"])
        for state in sorted(TERMINAL):
            ended.add_metric([state.value], totals[state.value])
        yield ended
        yield CounterMetricFamily("llmpod_endpoint_submitted", "Jobs submitted", totals["submitted"])
        yield CounterMetricFamily("llmpod_endpoint_retried", "Jobs queued again", totals["retried"])
        yield GaugeMetricFamily("llmpod_endpoint_jobs_in_queue", "Jobs waiting", len(self._store.queue))
        yield GaugeMetricFamily("llmpod_endpoint_jobs_in_progress", "Jobs on a worker", len(self._store.running))
        yield GaugeMetricFamily("llmpod_endpoint_jobs_kept", "Jobs in memory", len(self._store.jobs))
        oldest = next(iter(self._store.queue.values()), None)
        waited_s = 0.0 if oldest is None else self._store.clock() - oldest.queued_s
        yield GaugeMetricFamily("llmpod_endpoint_oldest_wait_seconds", "Wait of the first job in the queue", waited_s)
        yield GaugeMetricFamily("llmpod_endpoint_open_polls", "job-take polls held open", len(self._broker.polls))
        yield from self._workers(self._broker, self._fleet)
