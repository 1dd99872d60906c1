"""Worker state of the endpoint: its jobs, its last ping, and the state that follows from them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmpod.endpoint.state.job import Job

MIRROR_LIMIT = 60_000
"""Characters of ping job ids from which the list may be cut off: the SDK's PingJobMirror holds 64 KiB."""
SIGTERM_CODE = 128 + 15
SETTLE_S = 2.0
"""A job younger than this may be missing from a ping because the worker is still reading the job-take reply."""


class WorkerState(StrEnum):
    THROTTLED = "throttled"
    INITIALIZING = "initializing"
    IDLE = "idle"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    DEAD = "dead"


LIVE = frozenset({WorkerState.INITIALIZING, WorkerState.IDLE, WorkerState.RUNNING})


@dataclass(slots=True, eq=False)
class Worker:
    """One worker, ours (`owned`: we started its process) or somebody else's. Clock readings are monotonic seconds."""

    id: str
    owned: bool
    since_s: float
    log_lines: int = 2000
    jobs: dict[str, Job] = field(default_factory=dict)
    polled: bool = False
    throttled: bool = False
    draining: bool = False
    unhealthy: str | None = None
    dead: str | None = None
    retired: bool = False
    """The endpoint asked it to leave: the scaler, somebody at the page, or the end of the endpoint itself."""
    exit_code: int | None = None
    """Of its process, if that was ours and has ended; 128 + N if signal N ended it."""
    open_polls: int = 0
    last_poll_s: float | None = None
    last_ping_s: float | None = None
    idle_since_s: float | None = None
    jobs_done: int = 0
    stop_ids: dict[str, float] = field(default_factory=dict)
    """Jobs to stop that a job-stop poll has not fetched yet, and since when."""
    stopping: dict[str, float] = field(default_factory=dict)
    """Jobs whose stop was fetched, and when it was first asked for; forgotten when a ping no longer reports them."""
    stop_watchers: list[asyncio.Future[None]] = field(default_factory=list)
    logs: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.logs = deque(maxlen=self.log_lines)

    @property
    def state(self) -> WorkerState:
        if self.dead is not None:
            return WorkerState.DEAD
        if self.unhealthy is not None:
            return WorkerState.UNHEALTHY
        if self.draining:
            return WorkerState.STOPPING
        if self.throttled:
            return WorkerState.THROTTLED
        if not self.polled:
            return WorkerState.INITIALIZING
        return WorkerState.RUNNING if self.jobs else WorkerState.IDLE

    @property
    def ending(self) -> str | None:
        """How a dead worker ended, in a word: `stopped` as it was asked to or by itself in order, `crashed (137)` with
        the code that a shell would show, `gone` if its process is not ours. None while it lives."""
        if self.dead is None:
            return None
        code = self.exit_code
        if not self.owned:
            return "gone"
        if self.retired:
            return "stopped" if code in (None, 0, SIGTERM_CODE) else f"stopped ({code})"
        return "stopped" if code == 0 else "crashed" if code is None else f"crashed ({code})"

    @property
    def takes_jobs(self) -> bool:
        return self.dead is None and not self.draining and self.unhealthy is None

    def ask_stop(self, job_id: str, now: float) -> None:
        """Queues a stop signal and wakes the job-stop polls."""
        self.stop_ids.setdefault(job_id, now)
        self.wake_stop_polls()

    def wake_stop_polls(self) -> None:
        watchers, self.stop_watchers = self.stop_watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)


def silent(worker: Worker, now: float, interval_s: float, pings: int) -> bool:
    """Whether a worker that used to ping missed `pings` intervals. One that never did is judged by its process."""
    return pings > 0 and worker.last_ping_s is not None and now - worker.last_ping_s > pings * interval_s


def absent(worker: Worker, now: float, interval_s: float, pings: int) -> bool:
    """Whether a worker that is not ours and never pings left: idle, and without an open poll for `pings` intervals.

    A worker of the SDK that could take a job always has a poll open, but for pauses of at most 5 s.
    """
    if worker.owned or pings == 0 or worker.last_ping_s is not None or worker.jobs or worker.open_polls:
        return False
    return worker.last_poll_s is not None and now - worker.last_poll_s > max(pings * interval_s, 6.0)


def missing(held: Mapping[str, Job], reported: Collection[str], reported_chars: int, now: float) -> list[Job]:
    """Jobs that a ping should have named and did not: taken `SETTLE_S` ago or more, and the list was not cut off."""
    if reported_chars >= MIRROR_LIMIT:
        return []
    return [
        job
        for job_id, job in held.items()
        if job_id not in reported and job.taken_s is not None and now - job.taken_s >= SETTLE_S
    ]
