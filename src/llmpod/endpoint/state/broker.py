"""Job broker between queue and workers: polls, assignments, results, stop signals, pings, lost workers.

No HTTP here: api/worker.py turns requests into these calls, fleet/fleet.py reports what happens to processes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.faults import batch_size
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.autoscaler import queue_delay_target, request_count_target
from llmpod.endpoint.state.fleet_worker import WorkerPool
from llmpod.endpoint.state.job import Job, JobState
from llmpod.endpoint.state.store import JobStore
from llmpod.endpoint.state.worker import Worker, absent, missing, silent


@dataclass(slots=True, eq=False)
class Poll:
    """One open job-take. `jobs` are the worker's from the moment they are in here; see `Broker.close`."""

    worker: Worker
    asked: int
    ready: asyncio.Future[None]
    jobs: list[Job] = field(default_factory=list)


class Broker(WorkerPool[Worker]):
    """Which worker holds which job, which polls are open, and how many workers the queue needs."""

    def __init__(self, store: JobStore, options: Options, random: Random) -> None:
        super().__init__(options, store.clock)
        self.store = store
        self.random = random
        self.polls: OrderedDict[Poll, None] = OrderedDict()
        self.recycle: Callable[[Worker, str], None] = lambda worker, reason: None
        """Replaces a worker's process; the endpoint sets it where it has a fleet. Without one nothing happens."""
        self.crash: Callable[[Worker, str], object] = lambda worker, reason: None
        """Kills a worker's process at once; set likewise."""
        store.listeners.append(self._on_transition)
        store.on_queued = self.hand_out

    # ------------------------------------------------------------------ workers
    def add(self, worker_id: str, *, owned: bool) -> Worker:
        return self._keep(Worker(worker_id, owned, self.clock(), log_lines=self.options.worker_log_lines))

    def polling(self, worker_id: str) -> Worker:
        """The worker that polls; one we do not know is somebody else's process and is welcome."""
        return self.workers.get(worker_id) or self.add(worker_id, owned=False)

    def lose(self, worker: Worker, reason: str) -> None:
        """The worker is gone for good: nothing more is handed to it, and what it held goes back to the queue."""
        if worker.dead is not None:
            return
        worker.dead = reason
        self.drain(worker)
        for job in list(worker.jobs.values()):
            self.store.lose(job, f"worker {worker.id} {reason}")
        worker.stop_ids.clear()
        worker.stopping.clear()

    def drain(self, worker: Worker) -> None:
        """Hands out nothing more, and answers the worker's open polls so that it can leave (the SDK waits for both)."""
        worker.draining = True
        for poll in [poll for poll in self.polls if poll.worker is worker]:
            del self.polls[poll]
            if not poll.ready.done():
                poll.ready.set_result(None)
        worker.stop_asked.send()

    # ------------------------------------------------------------------ hand-out
    def open(self, worker: Worker, asked: int) -> Poll:
        """Opens a poll for up to `asked` jobs; its `ready` is set when it has some, or never will."""
        if worker.dead is not None and not worker.owned:
            # Silence had been taken for death; nobody else can use this id, so it is the same worker.
            worker.dead = None
            worker.draining = worker.retired = False
            worker.last_ping_s = None
        if not worker.started:
            worker.started = True
            worker.idle_since_s = self.clock()
        worker.open_polls += 1
        poll = Poll(worker, asked, asyncio.get_running_loop().create_future())
        if worker.takes_work:
            self.polls[poll] = None
            if self.store.queue:
                self.hand_out()
        return poll

    def close(self, poll: Poll, *, delivered: bool) -> None:
        """Ends a poll. Jobs that were chosen for it but did not reach the worker go back, oldest first."""
        self.polls.pop(poll, None)
        poll.worker.open_polls -= 1
        poll.worker.last_poll_s = self.clock()
        if not delivered:
            for job in reversed(poll.jobs):
                if job.state is JobState.IN_PROGRESS and job.worker_id == poll.worker.id:
                    self.store.give_back(job, "poll closed before the job was handed out")

    def hand_out(self) -> None:
        """Gives queued jobs to open polls, the longest-open poll first."""
        queue = self.store.queue
        while queue and self.polls:
            poll, _ = self.polls.popitem(last=False)
            if poll.ready.done():
                continue
            count = batch_size(self.faults.take_policy, poll.asked, len(queue), self.random)
            poll.jobs = self.store.take(count, poll.worker.id)
            poll.ready.set_result(None)

    def held(self, worker_id: str, job_id: str) -> Job | None:
        """The running job that a worker reports about; None when it no longer runs there but once did (a late report).

        Raises ApiError 404 for an id that does not exist and 400 for a job that this worker does not hold.
        """
        worker = self.workers.get(worker_id)
        if worker is not None and job_id in worker.jobs:
            return worker.jobs[job_id]
        job = self.store.jobs.get(job_id)
        if job is None:
            raise ApiError(404, f"no job {job_id}")
        if job.worker_id == worker_id:
            return None
        raise ApiError(400, f"worker {worker_id} does not hold job {job_id}")

    # ------------------------------------------------------------------ pings and stops
    def ping(self, worker_id: str, job_ids: str, status: str | None, reason: str, *, from_sdk: bool) -> None:
        """A heartbeat with the comma-separated ids of the jobs the worker thinks it holds.

        Only the SDK (`from_sdk`) is known to name them all; silence of another client about a job means nothing.
        """
        worker = self.workers.get(worker_id)
        if worker is None or worker.dead is not None:
            return
        now = self.clock()
        worker.last_ping_s = now
        if status == "unhealthy":
            worker.unhealthy = reason or "reported unhealthy"
            self.recycle(worker, f"unhealthy: {worker.unhealthy}")
            return
        reported = set(job_ids.split(",")) if job_ids else set()
        if from_sdk and self.options.lost_after_pings:
            self._find_lost(worker, reported, len(job_ids), now)
        self._repeat_stops(worker, reported, now)

    def _find_lost(self, worker: Worker, reported: set[str], chars: int, now: float) -> None:
        for job_id in reported:
            if job_id in worker.jobs:
                worker.jobs[job_id].missed_pings = 0
        for job in missing(worker.jobs, reported, chars, now):
            job.missed_pings += 1
            if job.missed_pings >= self.options.lost_after_pings:
                self.store.lose(job, f"worker {worker.id} no longer reports the job")

    def _repeat_stops(self, worker: Worker, reported: set[str], now: float) -> None:
        """A stop that came while the job was still in the SDK's own queue was ignored, so it is sent again."""
        for job_id, since_s in list(worker.stopping.items()):
            if job_id not in reported:
                del worker.stopping[job_id]
            elif self.options.stop_ignored_s and now - since_s > self.options.stop_ignored_s:
                del worker.stopping[job_id]
                self.recycle(worker, f"ignored the stop of job {job_id}")
            else:
                worker.ask_stop(job_id, since_s)

    def fetch_stops(self, worker: Worker) -> list[str]:
        """The ids a job-stop reply carries; each is repeated while pings still report it."""
        fetched = list(worker.stop_ids)
        for job_id, since_s in worker.stop_ids.items():
            worker.stopping.setdefault(job_id, since_s)
        worker.stop_ids.clear()
        return fetched

    def sweep(self) -> None:
        """Declares workers dead whose pings stopped, or who were somebody else's and do not ask for jobs any more."""
        now = self.clock()
        interval_s = self.options.ping_interval_ms / 1000
        for worker in [worker for worker in self.workers.values() if worker.dead is None]:
            if silent(worker, now, interval_s, self.options.dead_after_pings):
                reason = f"sent no ping for {self.options.dead_after_pings} intervals"
                self.lose(worker, reason)
                self.crash(worker, reason)
            elif absent(worker, now, interval_s, self.options.dead_after_pings):
                self.lose(worker, "asks for no jobs any more")

    # ------------------------------------------------------------------ following the store
    def _on_transition(self, job: Job, was: JobState | None, reason: str) -> None:
        worker = self.workers.get(job.worker_id) if job.worker_id else None
        if job.state is JobState.IN_PROGRESS:
            if worker is not None:
                worker.jobs[job.id] = job
                worker.idle_since_s = None
            return
        if was is JobState.IN_PROGRESS:
            self._release(job, reason)

    def _release(self, job: Job, reason: str) -> None:
        for worker in self.workers.values():
            if worker.jobs.pop(job.id, None) is None:
                continue
            if reason == "done":
                worker.done += 1
            elif worker.dead is None and job.ended:
                worker.ask_stop(job.id, self.clock())
            if not worker.jobs:
                worker.idle_since_s = self.clock()

    # ------------------------------------------------------------------ scaling
    def target(self, live: Sequence[Worker], least: int, most: int) -> int:
        options = self.options
        if options.scaler_type == "REQUEST_COUNT":
            queued = sum(1 for _ in self.store.waits_s())
            return request_count_target(queued, len(self.store.running), options.scaler_value, least, most)
        starting = sum(1 for worker in live if not worker.started)
        return queue_delay_target(
            self.store.waits_s(), len(live), starting, options.scaler_value, options.scale_step,
            least, most, first_at_once=options.first_worker_at_once,
        )  # fmt: skip

    def surplus(self, live: Sequence[Worker], target: int, least: int, most: int) -> list[Worker]:
        if self.options.scaler_type == "REQUEST_COUNT":
            # idleTimeout does not apply to this rule: whatever is above the formula goes, as soon as it is idle.
            return self._idle(live, target, target, 0.0)
        return self._idle(live, least, most, self.options.idle_timeout_s)
