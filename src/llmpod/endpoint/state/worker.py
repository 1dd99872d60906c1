"""Worker of a queue: its jobs, its polls, its last ping, the stops it was told."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llmpod.endpoint.state.fleet_worker import FleetWorker
from llmpod.endpoint.state.job import Job
from llmpod.endpoint.state.signal import Signal

MIRROR_LIMIT = 60_000
"""Characters of ping job ids from which the list may be cut off: the SDK's PingJobMirror holds 64 KiB."""
SETTLE_S = 2.0
"""A job younger than this may be missing from a ping because the worker is still reading the job-take reply."""


@dataclass(slots=True, eq=False)
class Worker(FleetWorker):
    """One worker of a queue. Clock readings are monotonic seconds."""

    jobs: dict[str, Job] = field(default_factory=dict)
    open_polls: int = 0
    last_poll_s: float | None = None
    last_ping_s: float | None = None
    stop_ids: dict[str, float] = field(default_factory=dict)
    """Jobs to stop that a job-stop poll has not fetched yet, and since when."""
    stopping: dict[str, float] = field(default_factory=dict)
    """Jobs whose stop was fetched, and when it was first asked for; forgotten when a ping no longer reports them."""
    stop_asked: Signal = field(default_factory=Signal)
    """Wakes the job-stop polls."""

    @property
    def load(self) -> int:
        return len(self.jobs)

    def ask_stop(self, job_id: str, now: float) -> None:
        self.stop_ids.setdefault(job_id, now)
        self.stop_asked.send()


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
