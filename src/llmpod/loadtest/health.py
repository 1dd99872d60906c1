"""The endpoint's own timeline, from /health samples: how many workers there were, and how many the load wanted."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmpod.loadtest.stats import nearest_rank

JOB_COUNTS = ("inQueue", "inProgress", "completed", "failed", "retried")
WORKER_COUNTS = ("idle", "ready", "running", "initializing", "throttled", "unhealthy")


def health_sample(body: Any) -> dict[str, dict[str, int]] | None:
    """The counts of a /health reply, or None when it is none. A count that is missing stays missing: it is not zero."""
    if not isinstance(body, dict) or not isinstance(body.get("workers"), dict):
        return None
    given = body.get("jobs")
    jobs: dict[str, Any] = given if isinstance(given, dict) else {}
    return {
        "jobs": {key: jobs[key] for key in JOB_COUNTS if isinstance(jobs.get(key), int)},
        "workers": {key: body["workers"][key] for key in WORKER_COUNTS if isinstance(body["workers"].get(key), int)},
    }


def live_workers(workers: dict[str, int]) -> int | None:
    """Workers that can take a job now: those running one and those idle. (`ready` overlaps with them.)"""
    if "running" in workers or "idle" in workers:
        return workers.get("running", 0) + workers.get("idle", 0)
    return workers.get("ready")


@dataclass(frozen=True, slots=True)
class Scaler:
    """RunPod's REQUEST_COUNT rule: workers = ceil((queued + running) / value), within [min, max].

    `assumed`: nobody said how the endpoint is set; then one is wanted for as many jobs as one was seen to run at once.
    """

    value: float = 1.0
    workers_min: int = 0
    workers_max: int | None = None
    assumed: bool = True

    def wanted(self, queued: int, running: int) -> int:
        wanted = max(self.workers_min, math.ceil((queued + running) / self.value))
        return wanted if self.workers_max is None else min(wanted, self.workers_max)


@dataclass(frozen=True, slots=True)
class Point:
    t_ms: float
    live: int
    wanted: int
    queued: int
    running: int
    throttled: int
    initializing: int


@dataclass(frozen=True, slots=True)
class HealthReport:
    """`short_s`: seconds with fewer live workers than wanted; `throttled_s`: seconds with a throttled worker."""

    points: tuple[Point, ...]
    live_min: int
    live_median: float
    live_max: int
    steady: bool
    short_s: float
    throttled_s: float
    initializing_s: float
    span_s: float
    queued_max: int
    assumed_per_worker: int | None


def points(samples: Sequence[dict[str, Any]], scaler: Scaler) -> list[Point]:
    out = []
    for sample in samples:
        workers, jobs = sample.get("workers"), sample.get("jobs")
        if not isinstance(workers, dict) or not isinstance(jobs, dict):
            continue
        live = live_workers(workers)
        if live is None:
            continue
        queued, running = jobs.get("inQueue", 0), jobs.get("inProgress", 0)
        out.append(
            Point(
                float(sample["t_ms"]),
                live,
                scaler.wanted(queued, running),
                queued,
                running,
                workers.get("throttled", 0),
                workers.get("initializing", 0),
            )
        )
    return out


def report(samples: Sequence[dict[str, Any]], scaler: Scaler, start_ms: float, end_ms: float) -> HealthReport | None:
    """The timeline between two moments; None when /health said nothing until its end.

    A worker count counts as changed only when a new value holds for two samples in a row: the counts of idle and
    running are not taken at one instant on the other side.
    """
    known = points(samples, scaler)
    inside = [point for point in known if start_ms <= point.t_ms <= end_ms]
    before = [point for point in known if point.t_ms < start_ms]
    if before:
        inside.insert(0, replace(before[-1], t_ms=start_ms))  # what was so stays so until something else is seen
    if not inside:
        return None
    lasting = {a.live for a, b in itertools.pairwise(inside) if a.live == b.live} or {p.live for p in inside}
    short = throttled = initializing = 0.0
    for point, after in zip(inside, [*inside[1:], None], strict=True):
        seconds = ((after.t_ms if after else end_ms) - point.t_ms) / 1000
        short += seconds if point.live < point.wanted else 0.0
        throttled += seconds if point.throttled else 0.0
        initializing += seconds if point.initializing else 0.0
    live = sorted(point.live for point in inside)
    return HealthReport(
        points=tuple(inside),
        live_min=live[0],
        live_median=nearest_rank(live, 50),
        live_max=live[-1],
        steady=len(lasting) == 1,
        short_s=short,
        throttled_s=throttled,
        initializing_s=initializing,
        span_s=(end_ms - start_ms) / 1000,
        queued_max=max(point.queued for point in inside),
        assumed_per_worker=round(scaler.value) if scaler.assumed else None,
    )
