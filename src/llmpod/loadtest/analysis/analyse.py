"""Analysis of recorded jobs into a phase's figures; repeatable from the files of a run."""

import itertools
import math
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmpod.loadtest.analysis.cost import Cost, cost
from llmpod.loadtest.analysis.explain import why
from llmpod.loadtest.analysis.latency import METRICS, Row, Share, Spread, row, shares, spreads
from llmpod.loadtest.analysis.littles_law import Little, little
from llmpod.loadtest.analysis.slo import Slo, Verdict, judge
from llmpod.loadtest.analysis.timeline import HealthReport, InFlight, Scaler
from llmpod.loadtest.analysis.timeline import report as health_report
from llmpod.loadtest.analysis.validity import ValidityIssue, doubts
from llmpod.loadtest.analysis.workers import (
    StartClass,
    Stratum,
    WorkerRow,
    class_rows,
    start_classes,
    strata,
    worker_rows,
)
from llmpod.loadtest.model.failures import ERROR_CLASSES, OUTCOMES, WARNINGS
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase
from llmpod.loadtest.stats import nearest_rank

LONG_RUN_S = 600.0
BATCHES = 8
BIN_WIDTHS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
DRIFT_JOBS = 5
# A target that invents names must not make the report as long as its inventions.
MOST_NAMES = 30


@dataclass(frozen=True, slots=True)
class View:
    """How to look at the data; nothing in it changes what was measured."""

    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    slos: tuple[Slo, ...] = ()
    goodput: tuple[tuple[str, float], ...] = ()  # (metric, ms): a good request meets all of them
    scaler: Scaler = field(default_factory=Scaler)
    usd_per_hour: float | None = None
    slice_s: float | None = None
    allow_worker_change: bool = False

    @property
    def all_percentiles(self) -> tuple[float, ...]:
        """Those to show, and those that an objective is about."""
        asked = {slo.percentile for slo in self.slos if slo.percentile is not None}
        return tuple(sorted({*self.percentiles, *asked}))


@dataclass(frozen=True, slots=True)
class Failures:
    """`code`: the worker's own name for what went wrong, by which failures are grouped where there is one."""

    error_class: str
    meaning: str
    n: int
    example: str
    job_id: str | None
    code: str | None = None

    @property
    def name(self) -> str:
        return self.error_class if self.code in (None, self.error_class) else f"{self.error_class} {self.code}"


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the measured window, by when jobs were done."""

    start_s: float
    n: int
    failed: int
    p50_ms: float | None
    p95_ms: float | None
    per_s: float
    live: float | None


@dataclass(frozen=True, slots=True)
class Prompts:
    """The jobs of one named kind of prompt of a mix."""

    name: str
    n: int
    failed: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class Bin:
    """A stretch of the phase, from its first sending to its last end, jobs of every role: what was done, what failed,
    and how many were in flight on average."""

    start_s: float
    width_s: float
    done: int
    failed: int
    in_flight: float


@dataclass(frozen=True, slots=True)
class Silence:
    """A stretch of the window in which jobs were in flight and nothing was answered."""

    from_s: float
    to_s: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class PhaseReport:
    phase: Phase
    mode: str
    counted: int
    ok: int
    failed: int
    excluded: dict[str, int]
    window_s: float
    window_start_ms: float
    requested_per_s: float | None
    achieved_per_s: float | None
    throughput_per_s: float | None
    throughput_error: float | None  # relative standard error, from batches of the window
    tokens_per_s: float | None
    output_tokens: int
    tokens_estimated: int
    finish_reasons: dict[str, int]
    rows: dict[str, Row]
    spreads: tuple[Spread, ...]
    shares: tuple[Share, ...]
    failures: tuple[Failures, ...]
    warnings: dict[str, int]
    prompts: tuple[Prompts, ...]
    classes: tuple[StartClass, ...]
    without_cold: Row | None
    workers: tuple[WorkerRow, ...]
    jain: float | None
    strata: tuple[Stratum, ...]
    little: Little | None
    slices: tuple[Slice, ...]
    over_time: tuple[Bin, ...]
    silences: tuple[Silence, ...]
    health: HealthReport | None
    cost: Cost | None
    goodput_share: float | None
    goodput_per_s: float | None
    client: dict[str, Any]
    outcomes: dict[str, int]
    validated: dict[str, tuple[int, int]]  # intent -> (valid, judged by the worker); "" is all of them
    drift: float | None  # by what share the median execution of the last quarter differs from the first's
    refusals: dict[str, int]  # why submits were refused before one was taken: "429" -> 2
    retry_wait_s: float
    poll_overshoot_ms: float | None  # the mean that polling would have added to the total, had it not been corrected
    doubts: tuple[ValidityIssue, ...]
    verdicts: tuple[Verdict, ...]
    why: str

    @property
    def valid(self) -> bool:
        return not any(doubt.fatal for doubt in self.doubts)


def analyse(
    phase: Phase,
    jobs: Sequence[Job],
    everyone: Sequence[Job],
    samples: Sequence[dict[str, Any]],
    client: Mapping[str, Any],
    view: View,
) -> PhaseReport:
    """`jobs` are those of this phase, of every role; `everyone` those of the whole run (a worker is new only once)."""
    in_order = sorted(jobs, key=lambda job: job.sent_ms or 0.0)
    measured = [job for job in in_order if job.counts]
    ok = [job for job in measured if job.ok]
    start_ms, end_ms = window(measured)
    span_s = (end_ms - start_ms) / 1000
    failed = len(measured) - len(ok)
    rows = {}
    for metric in METRICS:
        found = row(metric, ok, failed, view.all_percentiles)
        if found is not None:
            rows[metric] = found
    classes = start_classes(everyone, measured)
    warm = [job for job in ok if classes.get(id(job)) in ("warm", None)]
    per_worker, fairness = worker_rows(measured)
    scaler = view.scaler
    if scaler.assumed:
        scaler = replace(scaler, value=max((one.at_once for one in per_worker), default=1))
    flight = InFlight(jobs)
    timeline = health_report(samples, scaler, flight, start_ms, end_ms)
    good = [job for job in ok if _is_good(job, view.goodput)] if view.goodput else []
    tokens = sum(job.output_tokens or 0 for job in ok)
    answered, tokens_then = served(jobs, start_ms, end_ms)
    requested, achieved = rates(phase, measured)
    taken_back = [job for job in jobs if job.role == "measured" and not job.counts]
    overshoot = [
        job.total_upper_ms - job.total_ms for job in ok if job.total_upper_ms is not None and job.total_ms is not None
    ]
    draft = PhaseReport(
        phase=phase,
        mode=measured[0].mode if measured else (jobs[0].mode if jobs else ""),
        counted=len(measured),
        ok=len(ok),
        failed=failed,
        excluded={
            "warm-up": sum(1 for job in jobs if job.role == "warmup"),
            "cool-down": sum(1 for job in jobs if job.role == "cooldown"),
            "cancelled by this test": sum(1 for job in taken_back if "left_running" not in job.warnings),
            "left running without an id": sum(1 for job in taken_back if "left_running" in job.warnings),
        },
        window_s=span_s,
        window_start_ms=start_ms,
        requested_per_s=requested,
        achieved_per_s=achieved,
        throughput_per_s=answered / span_s if span_s > 0 else None,
        throughput_error=throughput_error(jobs, start_ms, end_ms),
        tokens_per_s=tokens_then / span_s if span_s > 0 and tokens else None,
        output_tokens=tokens,
        tokens_estimated=sum(1 for job in ok if job.tokens_estimated),
        finish_reasons=dict(Counter(job.finish_reason for job in ok if job.finish_reason).most_common(MOST_NAMES)),
        rows=rows,
        spreads=spreads(ok, view.percentiles),
        shares=shares(ok),
        failures=failures(measured),
        warnings=_warnings(measured),
        prompts=prompts(measured),
        classes=class_rows(measured, classes),
        without_cold=row("total", warm, 0, view.percentiles) if len(warm) < len(ok) else None,
        workers=per_worker,
        jain=fairness,
        strata=strata(ok),
        little=little(jobs, phase.concurrency, start_ms, end_ms) if phase.kind == "closed" else None,
        slices=slices(measured, start_ms, end_ms, timeline, view.slice_s or _slice_s(phase, span_s)),
        over_time=over_time(jobs, flight, start_ms),
        silences=silences(jobs, rows.get("total"), ok, flight, start_ms, end_ms),
        health=timeline,
        cost=cost(
            # Jobs that name no worker are taken to have had one each.
            sum(one.busy_s for one in per_worker)
            + sum(job.exec_ms or 0.0 for job in measured if not job.worker_id) / 1000,
            timeline,
            view.usd_per_hour,
            measured=(len(ok), tokens),
            window=(answered, tokens_then),
            good_share=len(good) / len(ok) if ok and view.goodput else None,
        ),
        goodput_share=len(good) / len(measured) if view.goodput and measured else None,
        goodput_per_s=len(good) / span_s if view.goodput and span_s > 0 else None,
        client=dict(client),
        outcomes=outcomes(measured),
        validated=validated(measured),
        drift=drift(ok, start_ms, end_ms),
        refusals=dict(Counter(_refusal(entry) for job in measured for entry in job.attempt_log).most_common()),
        retry_wait_s=math.fsum(job.retry_wait_ms or 0.0 for job in measured) / 1000,
        poll_overshoot_ms=math.fsum(overshoot) / len(overshoot) if overshoot else None,
        doubts=(),
        verdicts=(),
        why="",
    )
    judged = replace(
        draft, doubts=doubts(draft, allow_worker_change=view.allow_worker_change), verdicts=judge(view.slos, draft)
    )
    return replace(judged, why=why(judged))


def window(measured: Sequence[Job]) -> tuple[float, float]:
    """From the first measured job's sending to the last one's end, in ms."""
    sent = [job.sent_ms for job in measured if job.sent_ms is not None]
    done = [job.done_ms for job in measured if job.done_ms is not None]
    return (min(sent), max(done)) if sent and done else (0.0, 0.0)


def served(jobs: Sequence[Job], start_ms: float, end_ms: float) -> tuple[float, float]:
    """(answers, tokens) of the window. A job of any role counts with the share of its time that lies inside: whole jobs
    would count those that clients in step finished just inside an edge, and miss those that they finished just outside.
    """
    answered = tokens = 0.0
    for job in jobs:
        if job.ok:
            share = job.share_within(start_ms, end_ms)
            answered += share
            tokens += share * (job.output_tokens or 0)
    return answered, tokens


def rates(phase: Phase, measured: Sequence[Job]) -> tuple[float | None, float | None]:
    """(asked for, sent) per second. What was asked for is the schedule as drawn: a Poisson draw is not this client's
    fault."""
    if phase.kind == "closed":
        return None, None
    due = [job.scheduled_ms for job in measured if job.scheduled_ms is not None]
    sent = [job.sent_ms for job in measured if job.sent_ms is not None]
    if len(due) < 2 or len(sent) < 2 or max(due) == min(due) or max(sent) == min(sent):
        return phase.requested_rate_per_s, None
    return (len(due) - 1) / (max(due) - min(due)) * 1000, (len(sent) - 1) / (max(sent) - min(sent)) * 1000


def outcomes(measured: Sequence[Job]) -> dict[str, int]:
    """How many jobs had each outcome; records of older versions tell only success from failure."""
    counts = Counter(job.outcome or ("answered" if job.ok else "failed") for job in measured)
    return {name: counts[name] for name in OUTCOMES if counts[name]}


def validated(measured: Sequence[Job]) -> dict[str, tuple[int, int]]:
    """(valid, judged) per intent of the answers that the worker validated. A job without a verdict is none of them."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for job in measured:
        if job.valid is not None and job.outcome != "failed":
            groups[""].append(job.valid)
            if job.intent:
                groups[job.intent].append(job.valid)
    return {name: (sum(some), len(some)) for name, some in itertools.islice(groups.items(), MOST_NAMES)}


def drift(ok: Sequence[Job], start_ms: float, end_ms: float) -> float | None:
    """How far the last quarter's median execution time is from the first quarter's, as a share of the first's; the
    total, where RunPod's time is not known. None with fewer than DRIFT_JOBS in a quarter."""
    read = METRICS["exec"] if any(job.exec_ms is not None for job in ok) else METRICS["total"]
    quarter_ms = (end_ms - start_ms) / 4
    known = [(value, job.done_ms) for job in ok if job.done_ms is not None and (value := read(job)) is not None]
    first = sorted(value for value, done_ms in known if done_ms < start_ms + quarter_ms)
    last = sorted(value for value, done_ms in known if done_ms >= end_ms - quarter_ms)
    if min(len(first), len(last)) < DRIFT_JOBS:
        return None
    before, after = nearest_rank(first, 50), nearest_rank(last, 50)
    return abs(after / before - 1) if before > 0 else None


def _refusal(entry: str) -> str:
    """ "submit_429: HTTP 429: slow down" -> "429"; an error without an HTTP status keeps its class."""
    status = re.search(r"HTTP (\d{3})", entry)
    return status[1] if status else entry.partition(":")[0]


def failures(measured: Sequence[Job]) -> tuple[Failures, ...]:
    groups: dict[tuple[str, str | None], list[Job]] = defaultdict(list)
    for job in measured:
        if job.error_class is not None:
            group = (job.error_class, job.code)
            groups[group if group in groups or len(groups) < MOST_NAMES else (job.error_class, None)].append(job)
    order = list(ERROR_CLASSES)
    rows = [
        Failures(name, ERROR_CLASSES.get(name, ""), len(some), some[0].error or "", some[0].job_id, code)
        for (name, code), some in groups.items()
    ]
    return tuple(
        sorted(rows, key=lambda one: (-one.n, order.index(one.error_class) if one.error_class in order else 99))
    )


def slices(
    measured: Sequence[Job], start_ms: float, end_ms: float, timeline: HealthReport | None, slice_s: float | None
) -> tuple[Slice, ...]:
    if not slice_s or end_ms <= start_ms:
        return ()
    groups: dict[int, list[Job]] = defaultdict(list)
    for job in measured:
        if job.done_ms is not None:
            groups[int((job.done_ms - start_ms) / 1000 // slice_s)].append(job)
    out = []
    for number in range(math.ceil((end_ms - start_ms) / 1000 / slice_s)):
        some = groups.get(number, [])
        totals = sorted(job.total_ms for job in some if job.ok and job.total_ms is not None)
        low, high = start_ms + number * slice_s * 1000, start_ms + (number + 1) * slice_s * 1000
        live = sorted(point.live for point in timeline.points if low <= point.t_ms < high) if timeline else []
        width_s = min(slice_s, (end_ms - low) / 1000)
        out.append(
            Slice(
                start_s=number * slice_s,
                n=len(some),
                failed=sum(1 for job in some if not job.ok),
                p50_ms=nearest_rank(totals, 50) if totals else None,
                p95_ms=nearest_rank(totals, 95) if totals else None,
                per_s=len(some) / width_s if width_s > 0 else 0.0,
                live=nearest_rank(live, 50) if live else None,
            )
        )
    return tuple(out)


def prompts(measured: Sequence[Job]) -> tuple[Prompts, ...]:
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in measured:
        if job.prompt is not None:
            groups[job.prompt].append(job)
    out = []
    for name, some in sorted(groups.items()):
        totals = sorted(job.total_ms for job in some if job.ok and job.total_ms is not None)
        p50, p95 = (nearest_rank(totals, p) if totals else None for p in (50, 95))
        out.append(Prompts(name, len(some), sum(1 for job in some if not job.ok), p50, p95))
    return tuple(out)


def throughput_error(jobs: Sequence[Job], start_ms: float, end_ms: float) -> float | None:
    """The relative standard error of the throughput, from the spread of what batches of the window answered (their sum
    is nearly free of dependence, one job is not). None with too few answers for that."""
    width_ms = (end_ms - start_ms) / BATCHES
    if width_ms <= 0:
        return None
    counts = [0.0] * BATCHES
    for job in jobs:
        if not job.ok or job.sent_ms is None or job.done_ms is None:
            continue
        first = max(0, int((job.sent_ms - start_ms) // width_ms))
        last = min(BATCHES - 1, int((job.done_ms - start_ms) // width_ms))
        if first == last and start_ms <= job.sent_ms and job.done_ms <= end_ms:
            counts[first] += 1
            continue
        for number in range(first, last + 1):
            low = start_ms + number * width_ms
            counts[number] += job.share_within(low, low + width_ms)
    mean = math.fsum(counts) / BATCHES
    if mean < 2:
        return None
    return math.sqrt(math.fsum((one - mean) ** 2 for one in counts) / (BATCHES - 1) / BATCHES) / mean


def over_time(jobs: Sequence[Job], flight: InFlight, zero_ms: float) -> tuple[Bin, ...]:
    """The phase in up to 60 stretches of a round length, of five answers each or more; times from the start of the
    measured window."""
    sent = [job.sent_ms for job in jobs if job.sent_ms is not None]
    done = [job.done_ms for job in jobs if job.done_ms is not None]
    if not sent or not done or max(done) <= min(sent):
        return ()
    start_ms, end_ms = min(sent), max(done)
    rough_s = (end_ms - start_ms) / 1000 * max(1 / 60, 5 / len(done))
    width_s = next((one for one in BIN_WIDTHS_S if one >= rough_s), rough_s)
    number = math.ceil((end_ms - start_ms) / 1000 / width_s)
    answers, failed, busy_ms = [0] * number, [0] * number, [0.0] * number
    for job in jobs:
        if job.done_ms is not None:
            at = min(number - 1, int((job.done_ms - start_ms) / 1000 / width_s))
            answers[at] += 1
            failed[at] += not job.ok
    for low, high, count in flight.steps(start_ms, end_ms):
        at = int((low - start_ms) / 1000 / width_s)
        while low < high and at < number:
            until = min(high, start_ms + (at + 1) * width_s * 1000)
            busy_ms[at] += count * (until - low)
            low, at = until, at + 1
    return tuple(
        Bin(
            (start_ms - zero_ms) / 1000 + at * width_s,
            width := min(width_s, (end_ms - start_ms) / 1000 - at * width_s),
            answers[at],
            failed[at],
            busy_ms[at] / 1000 / width if width > 0 else 0.0,
        )
        for at in range(number)
    )


def silences(
    jobs: Sequence[Job], total: Row | None, ok: Sequence[Job], flight: InFlight, start_ms: float, end_ms: float
) -> tuple[Silence, ...]:
    """When jobs were in flight and no answer came for more than a second and eight times what three quarters of the
    answers took. An observation, not a verdict on whose fault it was; the longest first."""
    totals = sorted(job.total_ms for job in ok if job.total_ms is not None)
    if total is None or len(totals) < 10:
        return ()
    limit_ms = max(1000.0, 8 * nearest_rank(totals, 75))
    ends = sorted(job.done_ms for job in jobs if job.done_ms is not None and start_ms <= job.done_ms <= end_ms)
    sent = sorted(job.sent_ms for job in jobs if job.sent_ms is not None)
    found = []
    for before, after in itertools.pairwise([start_ms, *ends]):
        if after - before <= limit_ms:
            continue
        if not flight.at(before):  # nothing was asked before that
            before = sent[min(bisect_right(sent, before), len(sent) - 1)]
        if after - before > limit_ms:
            found.append(
                Silence((before - start_ms) / 1000, (after - start_ms) / 1000, flight.at(math.nextafter(after, before)))
            )
    return tuple(sorted(found, key=lambda one: one.from_s - one.to_s))


def _slice_s(phase: Phase, span_s: float) -> float | None:
    if phase.shape in ("soak", "stages", "ramp") or span_s >= LONG_RUN_S:
        return max(1.0, round(span_s / 60)) if span_s < 3600 else 60.0
    return None


def _is_good(job: Job, limits: Sequence[tuple[str, float]]) -> bool:
    return all((value := METRICS[metric](job)) is not None and value <= limit for metric, limit in limits)


def _warnings(measured: Sequence[Job]) -> dict[str, int]:
    counts = Counter(name for job in measured for name in job.warnings)
    return {name: counts[name] for name in WARNINGS if counts[name]}
