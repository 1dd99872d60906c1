"""What an endpoint's page shows, as GET /control/state: what queue and load balancer share, and the queue's."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

from llmpod.endpoint.api.client import summary
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.fleet_worker import W, WorkerPool
from llmpod.endpoint.state.job import Job, JobState
from llmpod.endpoint.state.worker import Worker

JOBS_SHOWN = 50
QUEUED_SHOWN = 10
ENDED_KEPT = 4000

T = TypeVar("T")


class Ended(Generic[T]):
    """What ended last, oldest first, and how many there have been."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: deque[T] = deque(maxlen=ENDED_KEPT)

    def add(self, one: T) -> None:
        self.count += 1
        self.kept.append(one)

    def since(self, after: str) -> Iterator[T]:
        """Those after the number that a page says it has seen (text of a query); all if it is not a number."""
        seen = int(after) if after.isascii() and after.isdigit() and len(after) < 16 else 0
        fresh = self.count - seen if seen <= self.count else self.count
        return islice(self.kept, max(0, len(self.kept) - fresh), None)


class PageState(ABC, Generic[W]):
    """Reads what an endpoint knows at this moment."""

    def __init__(self, pool: WorkerPool[W], fleet: Fleet[W] | None) -> None:
        self._workers = pool
        self._fleet = fleet

    @abstractmethod
    def _shown(self, after: str) -> dict[str, object]:
        """What one kind of endpoint shows; `ended`: what ended after that number."""

    @abstractmethod
    def _columns(self, worker: W, now: float) -> dict[str, object]:
        """What a worker's row has beside that of every kind."""

    def read(self, after: str = "") -> dict[str, object]:
        """Everything the page draws, without inputs and outputs."""
        pool, now = self._workers, self._workers.clock()
        return {
            "kind": pool.options.kind,
            "endpoint": pool.options.endpoint_id,
            "time": time.time(),
            "command": pool.options.command_line if self._fleet is not None else None,
            "faults": pool.faults.model_dump(),
            "workers": [self._row(worker, now) | self._columns(worker, now) for worker in pool.workers.values()],
            **self._shown(after),
        }

    def _row(self, worker: W, now: float) -> dict[str, object]:
        process = self._fleet.processes.get(worker.id) if self._fleet is not None else None
        return {
            "id": worker.id,
            "state": worker.state.value,
            "ending": worker.ending,
            "owned": worker.owned,
            "pid": process.pid if process is not None else None,
            "age_s": round(now - worker.since_s, 1),
            "done": worker.done,
            "note": worker.dead or worker.unhealthy,
        }


class QueuePage(PageState[Worker]):
    """Follows the store, for the times of the jobs that ended."""

    def __init__(self, broker: Broker, fleet: Fleet[Worker] | None) -> None:
        super().__init__(broker, fleet)
        self._store = broker.store
        self._ended: Ended[tuple[str, dict[str, object]]] = Ended()
        """(job id, what is drawn of it): outputs are not kept alive by it."""
        self._store.listeners.append(self._on_transition)

    def _on_transition(self, job: Job, _was: JobState | None, _reason: str) -> None:
        if job.ended:
            point: dict[str, object] = {"at": time.time(), "delayTime": job.delay_ms, "executionTime": job.execution_ms}
            self._ended.add((job.id, point))

    def _shown(self, after: str) -> dict[str, object]:
        return {
            "queued": len(self._store.queue),
            "running": len(self._store.running),
            "kept": len(self._store.jobs),
            "totals": dict(self._store.totals),
            "jobs": [summary(job) for job in self._jobs()],
            "ended_count": self._ended.count,
            "ended": [point for _, point in self._ended.since(after)],
        }

    def _jobs(self) -> list[Job]:
        """The jobs to list: those that run, then those that ended, both newest first, then the next in the queue."""
        jobs, queue = self._store.jobs, self._store.queue
        running = list(islice(reversed(self._store.running.values()), JOBS_SHOWN - 2 * QUEUED_SHOWN))
        left = JOBS_SHOWN - len(running) - min(len(queue), QUEUED_SHOWN)
        # A job may be forgotten by now, or run again under its id.
        known = dict.fromkeys(job_id for job_id, _ in reversed(self._ended.kept))
        ended = list(islice((job for name in known if (job := jobs.get(name)) and job.ended), left))
        return [*running, *ended, *islice(queue.values(), JOBS_SHOWN - len(running) - len(ended))]

    def _columns(self, worker: Worker, now: float) -> dict[str, object]:
        ping_age_s = None if worker.last_ping_s is None else round(now - worker.last_ping_s, 1)
        return {"jobs": worker.load, "ping_age_s": ping_age_s}
