"""Run context: what every job shares (client, clock, files, and the jobs in flight)."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from llmpod.loadtest.intake import job_path, line
from llmpod.loadtest.model.failures import error_text
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import ONE_REQUEST
from llmpod.loadtest.model.run_files import Journal
from llmpod.loadtest.options import RunOptions
from llmpod.loadtest.run.client import CallError, Reply, RunPod
from llmpod.loadtest.run.polling import PollPace
from llmpod.loadtest.units import utc_now

RETRIED_CLASSES = frozenset({"submit_429", "submit_5xx", "no_worker", "connect", "dns"})


class Clock:
    """Milliseconds on a monotonic clock. `offset_ms` continues the clock of a run that is resumed, so that its phases
    stay in order on one axis."""

    def __init__(self, offset_ms: float = 0.0) -> None:
        self._zero = perf_counter() - offset_ms / 1000

    def now_ms(self) -> float:
        return self.ms(perf_counter())

    def ms(self, perf_s: float) -> float:
        """A `perf_counter` reading on this run's axis."""
        return (perf_s - self._zero) * 1000


@dataclass(slots=True)
class RunContext:
    client: RunPod
    clock: Clock
    journal: Journal
    options: RunOptions
    pace: PollPace
    long_poll: bool | None = None  # None: not tried yet
    outstanding: dict[str, Job] = field(default_factory=dict)
    keep: Callable[[Job, Any], None] = lambda job, output: None  # gets each ended job of a queue mode with its output
    unnamed: dict[int, Job] = field(default_factory=dict)  # sent, and the service has not named an id yet
    jitter: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - back-off

    def event(self, name: str, **facts: Any) -> None:
        self.journal.event(name, self.clock.now_ms(), **facts)

    def end(self, job: Job, at_ms: float | None = None) -> None:
        """Stamps a job's end, now or at a moment that is known better, and what it took the caller."""
        job.done_ms = self.clock.now_ms() if at_ms is None else at_ms
        job.total_ms = job.done_ms - (job.done_ms if job.sent_ms is None else job.sent_ms)

    def sent(self, job: Job, sent_s: float) -> None:
        """Stamps the first sending; a retry does not reset it, because the caller was waiting all along."""
        self.unnamed[id(job)] = job
        if job.sent_ms is None:
            job.sent_ms = self.clock.ms(sent_s)
            job.sent_at = utc_now()
        else:
            job.retry_wait_ms = self.clock.ms(sent_s) - job.sent_ms

    def answered(self, job: Job) -> None:
        """The service has answered a submit, whatever it said."""
        self.unnamed.pop(id(job), None)

    def accepted(self, job: Job, job_id: str, at_ms: float) -> None:
        """Writes the id down at once: were this process killed now, `resume` could still cancel the job."""
        job.job_id = job_id
        job.accepted_ms = at_ms
        self.outstanding[job_id] = job
        self.journal.event("accepted", at_ms, job_id=job_id, phase=job.phase, index=job.index)

    def settled(self, job: Job) -> None:
        if job.job_id is not None:
            self.outstanding.pop(job.job_id, None)

    async def cancel(self, job_id: str) -> bool:
        """True when the service took the cancel. Never raises."""
        try:
            reply = await self.client.call("cancel", "POST", job_path("cancel", job_id), timeout_s=10)
        except CallError:
            return False
        if reply.status < 300:
            self.event("cancelled", job_id=job_id)
        return reply.status < 300

    async def again(
        self, job: Job, error_class: str, detail: str, retry_after_s: float | None, deadline_s: float
    ) -> bool:
        """Whether a refused submit is to be sent again; if so, after the wait. Only what --retries allows."""
        if error_class not in RETRIED_CLASSES or job.attempts > self.options.retries:
            return False
        job.attempt_log.append(f"{error_class}: {detail}"[:120])
        # Retry-After when the service named it, else 0.25 s doubling with jitter; never past the job's deadline.
        doubling_s = 0.25 * 2 ** min(job.attempts, 6) * self.jitter.uniform(0.5, 1.0)
        left_s = max(0.0, deadline_s - asyncio.get_running_loop().time())
        await asyncio.sleep(min(doubling_s if retry_after_s is None else retry_after_s, left_s, 60.0))
        job.attempts += 1
        return True


def describe(reply: Reply) -> str:
    """One line about a reply that was not what was asked for."""
    head = f"HTTP {reply.status}"
    if isinstance(reply.body, dict):
        for key in ("error", "message", "detail", "title"):
            if reply.body.get(key):
                return f"{head}: {(error_text(reply.body[key]) or '')[:200]}"
        if reply.status < 300:
            return f"{head}, but no job: its keys are {line(', '.join(list(reply.body)[:5]), 100) or 'none'}"
        return head
    if reply.text:
        looks = "HTML" if reply.text.lstrip().lower().startswith(("<!doctype", "<html")) else "text"
        return f"{head} with {looks}: {reply.text[:120]}"
    if reply.status < 300:
        return f"{head}, but no job: {'an empty body' if reply.body is None else type(reply.body).__name__}"
    return head


def left_running(unnamed: dict[int, Job], *, purge: bool) -> str | None:
    """A sentence on jobs that were sent and have no id yet, which cannot be cancelled; None where there are none."""
    if not unnamed:
        return None
    mode = next(iter(unnamed.values())).mode
    number = len(unnamed)
    if mode in ONE_REQUEST:
        return f"{number} requests are cut off; whether the endpoint goes on with them, it does not tell"
    route = "/runsync" if mode == "runsync" else "/run"
    has, runs = ("job has", "runs on") if number == 1 else ("jobs have", "run on")
    cure = "the queue is purged" if purge else "--mode run can cancel, --purge-on-abort empties the queue"
    return f"{number} {route} {has} no id yet and {runs}; {cure}"
