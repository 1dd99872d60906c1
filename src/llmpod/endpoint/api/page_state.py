"""What the page of a queue endpoint shows: jobs, workers, totals, as GET /control/state."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice

from llmpod.endpoint.api.client import summary
from llmpod.endpoint.api.control import ended_since, worker_row
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.job import Job, JobState
from llmpod.endpoint.state.store import JobStore
from llmpod.endpoint.state.worker import Worker

JOBS_SHOWN = 50
QUEUED_SHOWN = 10
ENDED_KEPT = 4000


class PageState:
    """Follows a store, for the times of the jobs that ended."""

    def __init__(self, store: JobStore, broker: Broker, fleet: Fleet[Worker] | None, options: Options) -> None:
        self.store = store
        self.broker = broker
        self.fleet = fleet
        self.options = options
        self.ended_count = 0
        self.ended: deque[tuple[str, dict[str, object]]] = deque(maxlen=ENDED_KEPT)
        """(job id, what is drawn of it) of those that ended last, oldest first; outputs are not kept alive by it."""
        store.listeners.append(self._on_transition)

    def _on_transition(self, job: Job, _was: JobState | None, _reason: str) -> None:
        if job.ended:
            self.ended_count += 1
            point: dict[str, object] = {"at": time.time(), "delayTime": job.delay_ms, "executionTime": job.execution_ms}
            self.ended.append((job.id, point))

    def read(self, after: str = "") -> dict[str, object]:
        """Everything the page draws, without inputs and outputs. `ended` has the jobs that ended after that number."""
        now = self.store.clock()
        fresh = ended_since(after, self.ended_count)
        return {
            "endpoint": self.options.endpoint_id,
            "time": time.time(),
            "queued": len(self.store.queue),
            "running": len(self.store.running),
            "kept": len(self.store.jobs),
            "totals": dict(self.store.totals),
            "command": self.options.command_line if self.fleet is not None else None,
            "faults": self.broker.faults.model_dump(),
            "workers": [self._row(worker, now) for worker in self.broker.workers.values()],
            "jobs": [summary(job) for job in self._jobs()],
            "ended_count": self.ended_count,
            "ended": [point for _, point in islice(self.ended, max(0, len(self.ended) - fresh), None)],
        }

    def _jobs(self) -> list[Job]:
        """The jobs to list: those that run, then those that ended, both newest first, then the next in the queue."""
        running = list(islice(reversed(self.store.running.values()), JOBS_SHOWN - 2 * QUEUED_SHOWN))
        left = JOBS_SHOWN - len(running) - min(len(self.store.queue), QUEUED_SHOWN)
        # A job may be forgotten by now, or run again under its id.
        known = dict.fromkeys(job_id for job_id, _ in reversed(self.ended))
        ended = list(islice((job for name in known if (job := self.store.jobs.get(name)) and job.ended), left))
        queued = islice(self.store.queue.values(), JOBS_SHOWN - len(running) - len(ended))
        return [*running, *ended, *queued]

    def _row(self, worker: Worker, now: float) -> dict[str, object]:
        ping_age_s = None if worker.last_ping_s is None else round(now - worker.last_ping_s, 1)
        return worker_row(worker, self.fleet, now) | {"jobs": worker.load, "ping_age_s": ping_age_s}
