"""Analysis of recorded jobs into a phase's figures; repeatable from the files of a run."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmpod.loadtest.analysis.cost import cost
from llmpod.loadtest.analysis.explain import why
from llmpod.loadtest.analysis.latency import METRICS, row, shares, spreads, totals
from llmpod.loadtest.analysis.phase import Failures, PhaseReport, Prompts, View
from llmpod.loadtest.analysis.slo import judge
from llmpod.loadtest.analysis.stretches import little, over_time, silences, slice_width_s, slices, throughput_error
from llmpod.loadtest.analysis.timeline import InFlight
from llmpod.loadtest.analysis.timeline import report as health_report
from llmpod.loadtest.analysis.validity import doubts
from llmpod.loadtest.analysis.workers import class_rows, start_classes, strata, worker_rows
from llmpod.loadtest.model.failures import ERROR_CLASSES, OUTCOMES, WARNINGS
from llmpod.loadtest.model.job_record import Job, grouped
from llmpod.loadtest.model.plan import Phase
from llmpod.loadtest.stats import ranked

DRIFT_JOBS = 5
# A target that invents names must not make the report as long as its inventions.
MOST_NAMES = 30


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
    rows = {metric: found for metric in METRICS if (found := row(metric, ok, failed, view.all_percentiles)) is not None}
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
        slices=slices(measured, start_ms, end_ms, timeline, view.slice_s or slice_width_s(phase, span_s)),
        over_time=over_time(jobs, flight, start_ms),
        silences=silences(jobs, ok, flight, start_ms, end_ms),
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
    first = [value for value, done_ms in known if done_ms < start_ms + quarter_ms]
    last = [value for value, done_ms in known if done_ms >= end_ms - quarter_ms]
    if min(len(first), len(last)) < DRIFT_JOBS:
        return None
    (before,), (after,) = ranked(first, 50), ranked(last, 50)
    return abs(after / before - 1) if before and after is not None else None


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


def prompts(measured: Sequence[Job]) -> tuple[Prompts, ...]:
    return tuple(
        Prompts(name, len(some), sum(not job.ok for job in some), *totals(some))
        for name, some in sorted(grouped(measured, lambda job: job.prompt).items())
    )


def _is_good(job: Job, limits: Sequence[tuple[str, float]]) -> bool:
    return all((value := METRICS[metric](job)) is not None and value <= limit for metric, limit in limits)


def _warnings(measured: Sequence[Job]) -> dict[str, int]:
    counts = Counter(name for job in measured for name in job.warnings)
    return {name: counts[name] for name in WARNINGS if counts[name]}
