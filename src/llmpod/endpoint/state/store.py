"""All jobs of the endpoint: the queue, the jobs that run, the finished ones until their retention ends.

Everything here is synchronous and happens in one event loop, so each method is atomic; whoever wants to know about
transitions registers in `listeners`, which are called after the job has changed.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from llmpod.endpoint.options import Options
from llmpod.endpoint.state.job import RETRYABLE, TERMINAL, Job, JobRequest, JobState, new_id

Listener = Callable[[Job, JobState | None, str], None]
"""Called with the job, the state it left (None: it is new) and the reason in a few words."""


class JobStore:
    """Jobs by id, the queue, and every transition between states; `listeners` hear of each."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self.clock = clock
        self.jobs: dict[str, Job] = {}
        self.queue: OrderedDict[str, Job] = OrderedDict()
        self.running: dict[str, Job] = {}
        self.totals: Counter[str] = Counter()
        self.listeners: list[Listener] = []
        self.on_queued: Callable[[], None] = lambda: None
        """Called when the queue has grown, after the listeners: handing out inside them would reorder what they see."""
        self._expiries: list[tuple[float, str]] = []

    # ------------------------------------------------------------------ a job's life
    def submit(self, request: JobRequest, *, sync: bool) -> Job:
        options = self.options
        now = self.clock()
        execution_ms = request.execution_timeout_ms
        ttl_ms = request.ttl_ms
        job = Job(
            id=new_id(sync=sync),
            request=request,
            sync=sync,
            submitted_s=now,
            submitted_at=time.time(),
            execution_timeout_s=(options.execution_timeout_ms if execution_ms is None else execution_ms) / 1000,
            ttl_s=(options.job_ttl_ms if ttl_ms is None else ttl_ms) / 1000,
            queued_s=now,
        )
        self.jobs[job.id] = job
        self.queue[job.id] = job
        self.totals["submitted"] += 1
        self._tell(job, None, "submitted")
        self.on_queued()
        return job

    def take(self, count: int, worker_id: str) -> list[Job]:
        """Hands the oldest `count` queued jobs to a worker. They run from here on."""
        taken: list[Job] = []
        now = self.clock()
        while len(taken) < count and self.queue:
            _, job = self.queue.popitem(last=False)
            was = job.move(JobState.IN_PROGRESS)
            job.taken_s = now
            job.worker_id = worker_id
            job.missed_pings = 0
            self.running[job.id] = job
            taken.append(job)
            self._tell(job, was, "taken")
        return taken

    def give_back(self, job: Job, reason: str) -> None:
        """Queues a running job again, ahead of the others: its worker never got it (no retry is counted)."""
        del self.running[job.id]
        self._queue_again(job, reason, ahead=True)

    def lose(self, job: Job, reason: str) -> None:
        """The worker of a running job is gone: queued again with a retry counted, FAILED when no retry is left."""
        if job.pinned:
            self.finish(job, JobState.FAILED, reason, error=f"{reason}; part of the answer had been sent already")
        elif job.retries >= self.options.max_retries:
            self.finish(job, JobState.FAILED, reason, error=f"{reason}; gave up after {job.retries} retries")
        else:
            job.retries += 1
            self.totals["retried"] += 1
            self.give_back(job, reason)

    def finish(
        self, job: Job, state: JobState, reason: str, *, output: bytes | None = None, error: str | None = None
    ) -> None:
        """The end of a job's life, on every path. Raises IllegalMoveError when it has ended already."""
        assert state in TERMINAL
        was = job.move(state)
        self.queue.pop(job.id, None)
        self.running.pop(job.id, None)
        job.finished_s = self.clock()
        job.output = output
        job.error = error
        self.totals[state.value] += 1
        self._expire_at(job, job.finished_s + retention_s(job, self.options))
        self._tell(job, was, reason)
        job.changed.send()

    def retry(self, job: Job) -> bool:
        """/retry: the same id and input once more, the old output removed.

        False when the state does not allow it, or when the job's ttl is over (RunPod: "not expired").
        """
        if job.state not in RETRYABLE or self.clock() - job.submitted_s > job.ttl_s:
            return False
        job.retries += 1
        self.totals["retried"] += 1
        self._queue_again(job, "retry requested", ahead=False)
        return True

    def _queue_again(self, job: Job, reason: str, *, ahead: bool) -> None:
        was = job.move(JobState.IN_QUEUE)
        job.output = job.error = job.worker_id = job.late_progress = None
        job.taken_s = job.first_chunk_s = job.finished_s = job.expires_s = None
        job.chunks.clear()
        job.queued_s = self.clock()
        self.queue[job.id] = job
        self.queue.move_to_end(job.id, last=not ahead)
        self._tell(job, was, reason)
        self.on_queued()

    def keep_result(self, job: Job, ttl_ms: int) -> None:
        """/status?ttl=: how long the result is kept from its completion (milliseconds, capped)."""
        job.result_ttl_s = min(ttl_ms / 1000, self.options.retention_max_s)
        if job.finished_s is not None:
            self._expire_at(job, job.finished_s + retention_s(job, self.options))

    # ------------------------------------------------------------------ time passing
    def sweep_running(self) -> None:
        """Ends what has run or lived too long. Called often; its cost is the number of running jobs."""
        now = self.clock()
        for job in list(self.running.values()):
            assert job.taken_s is not None
            if now - job.taken_s > job.execution_timeout_s:
                outcome = JobState(self.options.timeout_outcome)
                self.finish(
                    job,
                    outcome,
                    "execution timeout",
                    error=self.options.timeout_error.replace("{seconds}", f"{job.execution_timeout_s:g}"),
                )
            elif now - job.submitted_s > job.ttl_s and self.options.ttl_running_outcome != "IGNORE":
                self.finish(job, JobState.TIMED_OUT, "ttl expired", error="job outlived its ttl while running")
                if self.options.ttl_running_outcome == "DELETE":
                    self._delete(job)

    def sweep_waiting(self) -> None:
        """Ends queued jobs that outlived their ttl, and forgets finished ones whose retention is over."""
        now = self.clock()
        for job in [job for job in self.queue.values() if now - job.submitted_s > job.ttl_s]:
            self.finish(job, JobState.TIMED_OUT, "ttl expired", error="job outlived its ttl in the queue")
            if self.options.ttl_outcome == "DELETE":
                self._delete(job)
        while self._expiries and self._expiries[0][0] <= now:
            _, job_id = heapq.heappop(self._expiries)
            expired = self.jobs.get(job_id)
            # An entry is stale when the job runs again or was given another retention since.
            if expired is not None and expired.expires_s is not None and expired.expires_s <= now:
                self._delete(expired)

    def _expire_at(self, job: Job, when_s: float) -> None:
        if job.expires_s != when_s:
            job.expires_s = when_s
            heapq.heappush(self._expiries, (when_s, job.id))

    def _delete(self, job: Job) -> None:
        self.jobs.pop(job.id, None)

    # ------------------------------------------------------------------ questions
    def waits_s(self) -> Iterator[float]:
        """How long each queued job that may trigger scaling has waited, oldest first."""
        now = self.clock()
        return (now - job.queued_s for job in self.queue.values() if not job.request.low_priority)

    def recent(self, count: int) -> list[Job]:
        """The latest jobs, newest first."""
        newest = reversed(self.jobs.values())
        return [job for job, _ in zip(newest, range(count), strict=False)]

    def _tell(self, job: Job, was: JobState | None, reason: str) -> None:
        for listener in self.listeners:
            listener(job, was, reason)


def retention_s(job: Job, options: Options) -> float:
    """Seconds a finished job is kept from its completion: 30 min (async), 1 min (sync), or what the client asked for.

    A job's ttl counts from submission and ends the retention too (RunPod, send-requests: "deleted in any state"),
    except for a job that ended after it: that is TIMED_OUT and kept to say so, or was allowed to go on.
    """
    kept = options.retention_sync_s if job.sync else options.retention_async_s
    if job.result_ttl_s is not None:
        kept = job.result_ttl_s
    if job.finished_s is not None and (left_s := job.submitted_s + job.ttl_s - job.finished_s) > 0:
        kept = min(kept, left_s)
    return kept
