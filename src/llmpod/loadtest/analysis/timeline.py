"""Endpoint timeline from /health samples: live workers, and workers the load needed."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmpod.loadtest.model.health import live_workers
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.stats import nearest_rank
from llmpod.protocol import request_count_workers


@dataclass(frozen=True, slots=True)
class Scaler:
    """RunPod's REQUEST_COUNT rule: workers = ceil((queued + running) / value), within [min, max].

    `assumed`: the endpoint's setting is not known; then one is wanted for as many jobs as one was seen to run at once.
    """

    value: float = 1.0
    workers_min: int = 0
    workers_max: int | None = None
    assumed: bool = True

    def wanted(self, jobs: int) -> int:
        wanted = max(self.workers_min, request_count_workers(0, jobs, self.value))
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


# With fewer samples of /health than this, how long workers were missing is not known.
ENOUGH_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class HealthReport:
    """`short_s`: seconds with fewer live workers than this client's own jobs in flight want; None with too few samples
    to tell. `throttled_s`: seconds with a throttled worker."""

    points: tuple[Point, ...]
    live_min: int
    live_median: float
    live_max: int
    steady: bool
    short_s: float | None
    throttled_s: float
    initializing_s: float
    span_s: float
    queued_max: int
    assumed_per_worker: int | None


class InFlight:
    """How many of a client's jobs were between sending and end, at any moment."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        spans = [(job.sent_ms, job.done_ms) for job in jobs if job.sent_ms is not None and job.done_ms is not None]
        self._sent = sorted(sent for sent, _ in spans)
        self._done = sorted(done for _, done in spans)

    def at(self, t_ms: float) -> int:
        return bisect_right(self._sent, t_ms) - bisect_right(self._done, t_ms)

    def steps(self, start_ms: float, end_ms: float) -> list[tuple[float, float, int]]:
        """(from, to, jobs): the stretches of a window in which the number does not change."""
        edges = [(at, 1) for at in self._sent if start_ms < at < end_ms]
        edges += [(at, -1) for at in self._done if start_ms < at < end_ms]
        out, low, now = [], start_ms, self.at(start_ms)
        for at, step in sorted(edges):
            if at > low:
                out.append((low, at, now))
            low, now = at, now + step
        return [*out, (low, end_ms, now)] if end_ms > low else out


def points(samples: Sequence[dict[str, Any]], scaler: Scaler, flight: InFlight) -> list[Point]:
    """A worker count that is there for one sample only is passed over: idle and running are not counted at one instant
    on the other side."""
    known = [
        (sample, live)
        for sample in samples
        if isinstance(sample.get("workers"), dict) and isinstance(sample.get("jobs"), dict)
        if (live := live_workers(sample["workers"])) is not None
    ]
    out: list[Point] = []
    for (sample, live), after in itertools.zip_longest(known, known[1:]):
        if out and after is not None and live != out[-1].live and after[1] == out[-1].live:
            live = out[-1].live
        at = float(sample["t_ms"])
        jobs, workers = sample["jobs"], sample["workers"]
        out.append(
            Point(
                at,
                live,
                scaler.wanted(flight.at(at)),
                jobs.get("inQueue", 0),
                jobs.get("inProgress", 0),
                workers.get("throttled", 0),
                workers.get("initializing", 0),
            )
        )
    return out


def report(
    samples: Sequence[dict[str, Any]], scaler: Scaler, flight: InFlight, start_ms: float, end_ms: float
) -> HealthReport | None:
    """The timeline between two moments; None when /health said nothing until its end.

    A worker count counts as changed only when a new value holds for two samples in a row.
    """
    known = points(samples, scaler, flight)
    inside = [point for point in known if start_ms <= point.t_ms <= end_ms]
    looks = len(inside)
    before = [point for point in known if point.t_ms < start_ms]
    if before:  # what was so stays so until something else is seen
        inside.insert(0, replace(before[-1], t_ms=start_ms, wanted=scaler.wanted(flight.at(start_ms))))
    if not inside:
        return None
    lasting = {a.live for a, b in itertools.pairwise(inside) if a.live == b.live} or {p.live for p in inside}
    ends_ms = [*(point.t_ms for point in inside[1:]), end_ms]
    lasted = [(point, (until_ms - point.t_ms) / 1000) for point, until_ms in zip(inside, ends_ms, strict=True)]
    short_ms = 0.0
    if looks >= ENOUGH_SAMPLES:
        times = [point.t_ms for point in inside]
        for low, high, jobs in flight.steps(inside[0].t_ms, end_ms):
            live_then = inside[bisect_right(times, low) - 1].live
            # A look at the counts is worth its own moment: between two different ones, the better of both.
            after = inside[min(bisect_right(times, low), len(inside) - 1)]
            short_ms += high - low if max(live_then, after.live) < scaler.wanted(jobs) else 0.0
    live = sorted(point.live for point in inside)
    return HealthReport(
        points=tuple(inside),
        live_min=live[0],
        live_median=nearest_rank(live, 50),
        live_max=live[-1],
        steady=len(lasting) == 1,
        short_s=short_ms / 1000 if looks >= ENOUGH_SAMPLES else None,
        throttled_s=math.fsum(s for point, s in lasted if point.throttled),
        initializing_s=math.fsum(s for point, s in lasted if point.initializing),
        span_s=(end_ms - start_ms) / 1000,
        queued_max=max(point.queued for point in inside),
        assumed_per_worker=round(scaler.value) if scaler.assumed else None,
    )
