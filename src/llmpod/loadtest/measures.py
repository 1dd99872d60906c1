"""The table of latencies: which metrics there are, and each one's row."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from llmpod.loadtest.records import Job
from llmpod.loadtest.stats import Quantile, block_bootstrap, effective_n, nearest_rank, quantile

# As attrgetters: a report of a hundred thousand jobs calls them millions of times.
METRICS: dict[str, Callable[[Job], float | None]] = {
    "total": attrgetter("total_ms"),
    "delay": attrgetter("delay_ms"),
    "exec": attrgetter("exec_ms"),
    "overhead": attrgetter("overhead_ms"),
    "scheduled": attrgetter("scheduled_total_ms"),
    "schedule_delay": attrgetter("schedule_delay_ms"),
    "ttft": attrgetter("ttft_ms"),
    "tpot": attrgetter("tpot_ms"),
    "chunk_gap": attrgetter("gap_p50_ms"),
}

MEANING = {
    "total": "sent to answered (service latency)",
    "delay": "RunPod's delayTime: queue, dispatch and cold start",
    "exec": "RunPod's executionTime",
    "overhead": "total - delay - exec: network and hand-overs",
    "scheduled": "due to answered: total plus the wait to be sent",
    "schedule_delay": "due to sent: this client's own lateness",
    "ttft": "sent to first token",
    "tpot": "time per output token after the first",
    "chunk_gap": "median gap between chunks of one answer",
}

# A job that failed has not met a limit on these; what a failed job's queue or execution took says nothing.
FAILURE_AWARE = frozenset({"total", "scheduled", "ttft"})


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one phase. `missing`: successful jobs that did not report it. `adjusted`: p -> percentile with
    every failed job counted as infinitely slow; None where failures say nothing about the metric."""

    metric: str
    n: int
    missing: int
    mean_ms: float
    min_ms: float
    max_ms: float
    n_eff: float
    quantiles: tuple[Quantile, ...]
    adjusted: dict[str, float] | None
    interval_method: str

    def at(self, p: float) -> Quantile | None:
        return next((q for q in self.quantiles if q.p == p), None)


def row(
    metric: str, ok: Sequence[Job], failed: int, percentiles: Sequence[float], *, block_s: float | None = None
) -> Row | None:
    """The row of a metric over successful jobs in order of sending; None when no job has it.

    `block_s` asks for block-bootstrap intervals (long runs, whose conditions change); without enough blocks it is order
    statistics.
    """
    read = METRICS[metric]
    pairs = [(value, (job.sent_ms or 0.0) / 1000) for job in ok if (value := read(job)) is not None]
    if not pairs:
        return None
    values = [value for value, _ in pairs]
    ordered = sorted(values)
    n_eff = effective_n(values)
    method = "order statistics"
    quantiles = [quantile(ordered, p, n_eff) for p in percentiles]
    if block_s is not None:
        sure = [found.p for found in quantiles if found.n >= found.needed_n]
        around = block_bootstrap(values, [at for _, at in pairs], sure, block_s)
        if around:
            method = f"block bootstrap, blocks of {block_s:g} s"
            quantiles = [
                replace(found, low=around[found.p][0], high=around[found.p][1]) if found.p in around else found
                for found in quantiles
            ]
    adjusted = None
    if metric in FAILURE_AWARE:
        with_failures = ordered + [math.inf] * failed
        adjusted = {f"p{p:g}": nearest_rank(with_failures, p) for p in percentiles}
    return Row(
        metric=metric,
        n=len(values),
        missing=len(ok) - len(values),
        mean_ms=math.fsum(values) / len(values),
        min_ms=ordered[0],
        max_ms=ordered[-1],
        n_eff=n_eff,
        quantiles=tuple(quantiles),
        adjusted=adjusted,
        interval_method=method,
    )


@dataclass(frozen=True, slots=True)
class Share:
    """Where the time of one job, or of the mean job, went. Percentiles do not add up; these do."""

    label: str
    wait_ms: float
    delay_ms: float
    exec_ms: float
    overhead_ms: float

    @property
    def total_ms(self) -> float:
        return self.wait_ms + self.delay_ms + self.exec_ms + self.overhead_ms


def shares(ok: Sequence[Job]) -> tuple[Share, ...]:
    """The mean job's time, and that of the very jobs that stand at p50 and at p95 of the total."""
    whole = [job for job in ok if job.overhead_ms is not None and job.total_ms is not None]
    if not whole:
        return ()
    # By what the caller felt: where there is a schedule, the wait to be sent is part of it.
    ranked = sorted(whole, key=lambda job: job.scheduled_total_ms or job.total_ms or 0.0)

    def of(label: str, some: Sequence[Job]) -> Share:
        def mean(metric: str) -> float:
            return math.fsum(filter(None, map(METRICS[metric], some))) / len(some)

        return Share(label, mean("schedule_delay"), mean("delay"), mean("exec"), mean("overhead"))

    at = {p: ranked[max(0, math.ceil(p / 100 * len(ranked)) - 1)] for p in (50, 95)}
    places = [("mean", ranked), *((f"at p{p}", [job]) for p, job in at.items())]
    return tuple(of(label, some) for label, some in places)
