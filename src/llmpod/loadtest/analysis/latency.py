"""Latency metrics, and the row of each in the table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.stats import Quantile, nearest_rank, needed_n, quantiles, ranked

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
    "chunk_gap_max": attrgetter("gap_max_ms"),
}

MEANING = {
    "total": "sent to answered (service latency)",
    "delay": "RunPod's delayTime: queue, dispatch and cold start",
    "exec": "RunPod's executionTime",
    "overhead": "total - delay - exec - retries: network and hand-overs",
    "scheduled": "due to answered: total plus the wait to be sent",
    "schedule_delay": "due to sent: this client's own lateness",
    "ttft": "sent to first token",
    "tpot": "time per output token after the first",
    "chunk_gap": "median gap between chunks of one answer",
    "chunk_gap_max": "longest gap between chunks of one answer",
}

# A job that failed has not met a limit on these; what a failed job's queue or execution took says nothing.
FAILURE_AWARE = frozenset({"total", "scheduled", "ttft"})


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one phase. `missing`: successful jobs that did not report it. `n_eff`: the least of its
    percentiles'. `adjusted`: p -> percentile with every failed job counted as infinitely slow; None where failures say
    nothing about the metric."""

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

    def value(self, p: float) -> float | None:
        found = self.at(p)
        return found.value if found else None


def row(
    metric: str, ok: Sequence[Job], failed: int, percentiles: Sequence[float], *, intervals: bool = True
) -> Row | None:
    """The row of a metric over successful jobs in order of sending; None when no job has it. `intervals=False` leaves
    them out, for simulations."""
    read = METRICS[metric]
    values = [value for job in ok if (value := read(job)) is not None]
    if not values:
        return None
    ordered = sorted(values)
    adjusted = None
    if metric in FAILURE_AWARE:
        with_failures = ordered + [math.inf] * failed
        adjusted = {f"p{p:g}": nearest_rank(with_failures, p) for p in percentiles}
    found = quantiles(values, percentiles) if intervals else _plain(ordered, percentiles)
    return Row(
        metric=metric,
        n=len(values),
        missing=len(ok) - len(values),
        mean_ms=math.fsum(values) / len(values),
        min_ms=ordered[0],
        max_ms=ordered[-1],
        n_eff=min((one.n_eff for one in found), default=float(len(values))),
        quantiles=found,
        adjusted=adjusted,
        interval_method="order statistics",
    )


SPREADS = {
    "gap": "ms between chunks, every gap of every answer (inter-token latency where a chunk is a token)",
    "output tokens/s": "of one answer: after its first token where it was streamed, else over its execution",
    "input tokens": "of one prompt, as the endpoint counted them",
    "output tokens": "of one answer",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Distribution of something other than a job's latency: percentiles by nearest rank, without intervals."""

    name: str
    n: int
    mean: float
    max: float
    percentiles: dict[str, float]


def spreads(ok: Sequence[Job], percentiles: Sequence[float]) -> tuple[Spread, ...]:
    values: dict[str, list[float]] = {
        "gap": [gap for job in ok for gap in job.gaps or ()],
        "output tokens/s": [rate for job in ok if (rate := _tokens_per_s(job)) is not None],
        "input tokens": [float(job.prompt_tokens) for job in ok if job.prompt_tokens is not None],
        "output tokens": [float(job.output_tokens) for job in ok if job.output_tokens is not None],
    }
    return tuple(
        Spread(
            name,
            len(some),
            math.fsum(some) / len(some),
            max(some),
            {f"p{p:g}": nearest_rank(ordered, p) for p in percentiles},
        )
        for name, some in values.items()
        if (ordered := sorted(some))
    )


def _tokens_per_s(job: Job) -> float | None:
    if job.tpot_ms:
        return 1000 / job.tpot_ms
    return job.output_tokens / job.exec_ms * 1000 if job.output_tokens and job.exec_ms and not job.chunks else None


def _plain(ordered: Sequence[float], percentiles: Sequence[float]) -> tuple[Quantile, ...]:
    n = len(ordered)
    return tuple(
        Quantile(p, nearest_rank(ordered, p), n, float(n), None, None, needed_n(p), float(n)) for p in percentiles
    )


@dataclass(frozen=True, slots=True)
class Share:
    """Where the time of one job, or of the mean job, went. Percentiles do not add up; these do."""

    label: str
    wait_ms: float
    delay_ms: float
    exec_ms: float
    overhead_ms: float
    retry_ms: float = 0.0  # from the first sending to that of the submit that was taken

    @property
    def parts(self) -> dict[str, float]:
        """In the order of a job's life."""
        return {
            "wait": self.wait_ms,
            "retries": self.retry_ms,
            "delay": self.delay_ms,
            "exec": self.exec_ms,
            "overhead": self.overhead_ms,
        }

    @property
    def total_ms(self) -> float:
        return sum(self.parts.values())


def totals(jobs: Sequence[Job]) -> list[float | None]:
    """p50 and p95 of the successful jobs' totals."""
    return ranked((job.total_ms for job in jobs if job.ok), 50, 95)


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

        retries = math.fsum(job.retry_wait_ms or 0.0 for job in some) / len(some)
        return Share(label, mean("schedule_delay"), mean("delay"), mean("exec"), mean("overhead"), retries)

    at = {p: ranked[max(0, math.ceil(p / 100 * len(ranked)) - 1)] for p in (50, 95)}
    places = [("mean", ranked), *((f"at p{p}", [job]) for p, job in at.items())]
    return tuple(of(label, some) for label, some in places)
