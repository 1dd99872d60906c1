"""Jobs grouped by worker, by cold or warm start, and by number of live workers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from llmpod.loadtest.analysis.latency import totals
from llmpod.loadtest.model.job_record import Job, grouped
from llmpod.loadtest.stats import difference_interval, jain, nearest_rank, quantiles, ranked

# A delay this much above what the phase's other jobs waited, on a worker's first job, is a start from nothing; the
# smaller one is a worker that was woken (FlashBoot, an idle flex worker). Measured wakes took 0.7 to 2.6 s, cold starts
# 48 and 106 s.
COLD_MS, WAKE_MS = 10_000.0, 500.0
SLOW = 1.05
LASTING = 0.05
CLASSES = ("cold", "wake", "warm")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """`busy_s`: seconds with at least one job; `at_once`: the most jobs it ran at the same time. Both are inferred from
    the jobs' own times. `slow`: its p50 was more than 5 % above that of all others, and above it beyond chance, by a
    test that is wrong about any worker of a phase in at most 5 % of phases; None where its jobs are too few, or too
    alike in time, to tell."""

    worker_id: str
    jobs: int
    failed: int
    exec_p50_ms: float | None
    exec_p95_ms: float | None
    busy_s: float
    at_once: int
    slow: bool | None


@dataclass(frozen=True, slots=True)
class StartClass:
    name: str
    n: int
    delay_p50_ms: float | None
    total_p50_ms: float | None


@dataclass(frozen=True, slots=True)
class Stratum:
    """Jobs that were sent while `workers` were live."""

    workers: int
    n: int
    p50_ms: float | None
    p95_ms: float | None


def worker_rows(jobs: Sequence[Job]) -> tuple[tuple[WorkerRow, ...], float | None]:
    """A row per worker, the busiest first, and Jain's index over their numbers of jobs (1: evenly spread)."""
    groups = grouped(jobs, lambda job: job.worker_id or None)
    in_order = {
        name: [job.exec_ms for job in some if job.ok and job.exec_ms is not None] for name, some in groups.items()
    }
    rows = []
    for name, some in groups.items():
        p50, p95 = ranked(in_order[name], 50, 95)
        lasted = _lasted_ms(some)
        rows.append(
            WorkerRow(
                worker_id=name,
                jobs=len(some),
                failed=sum(not job.ok for job in some),
                exec_p50_ms=p50,
                exec_p95_ms=p95,
                busy_s=sum(lasted.values()) / 1000,
                at_once=_most_at_once(lasted),
                slow=_slow(name, in_order) if len(groups) > 1 else None,
            )
        )
    rows.sort(key=lambda one: (-one.jobs, one.worker_id))
    return tuple(rows), jain([one.jobs for one in rows]) if len(rows) > 1 else None


def _slow(name: str, exec_ms: Mapping[str, Sequence[float]]) -> bool | None:
    others = [value for other, values in exec_ms.items() if other != name for value in values]
    if not others or not exec_ms[name]:
        return None
    (own,) = quantiles(exec_ms[name], [50], hidden=False)
    if own.low is None or len(others) < own.needed_n:
        return None
    mine, usual = sorted(exec_ms[name]), sorted(others)
    confidence = 1 - 2 * 0.05 / len(exec_ms)  # one of its two sides is tested
    above = difference_interval(usual, mine, 50, len(usual), own.worth, confidence)
    return above is not None and above[0] > 0 and own.value > SLOW * nearest_rank(usual, 50)


def execution_span(job: Job) -> tuple[float, float] | None:
    """When the worker had it, on the run's clock: it started `delay` after it was accepted by the queue."""
    if job.sent_ms is None or job.delay_ms is None or job.exec_ms is None or job.total_ms is None:
        return None
    overhead = max(0.0, job.total_ms - job.delay_ms - job.exec_ms)
    start = job.sent_ms + overhead / 2 + job.delay_ms
    return start, start + job.exec_ms


def at_once(jobs: Sequence[Job]) -> int:
    """How many executions a worker had at the same time: the most that lasted for a twentieth of its busy time.

    The largest number ever would be decided by one late answer, which moves a job's estimated start.
    """
    return _most_at_once(_lasted_ms(jobs)) if jobs else 0


def _most_at_once(lasted: Mapping[int, float]) -> int:
    busy = sum(lasted.values())
    levels = [level for level in lasted if sum(ms for k, ms in lasted.items() if k >= level) >= LASTING * busy]
    return max([1, *levels])


def _lasted_ms(jobs: Sequence[Job]) -> dict[int, float]:
    """number of jobs at once, from 1 -> for how long there were so many."""
    edges = []
    for job in jobs:
        span = execution_span(job)
        if span is not None and span[1] > span[0]:
            edges += [(span[0], 1), (span[1], -1)]
    edges.sort()
    lasted: dict[int, float] = defaultdict(float)
    now = 0
    for (at, step), (after, _) in pairwise(edges):
        now += step
        if now:
            lasted[now] += after - at
    return lasted


def start_classes(everyone: Sequence[Job], measured: Sequence[Job]) -> dict[int, str]:
    """id(job) -> cold, wake or warm, for the measured jobs that tell their delay.

    A job can be other than warm only with a reason: it was the first that its worker was seen with, or it was sent
    while no worker was live, or before anything had run at all. Among those the delay beyond the median of the others
    decides; where there are no others, the whole delay.
    """
    known = [job for job in measured if job.delay_ms is not None]
    if not known:
        return {}
    first_on_worker: set[int] = set()
    seen: set[str] = set()
    for job in sorted(everyone, key=lambda one: one.done_ms or 0.0):
        if job.worker_id and job.worker_id not in seen:
            seen.add(job.worker_id)
            first_on_worker.add(id(job))
    first_done = min((job.done_ms for job in everyone if job.done_ms is not None and job.ok), default=0.0)
    reasons = {
        id(job): id(job) in first_on_worker or job.workers_at_submit == 0 or (job.sent_ms or 0.0) < first_done
        for job in known
    }
    others = [job.delay_ms or 0.0 for job in known if not reasons[id(job)]]
    expected = median(others) if others else 0.0
    out = {}
    for job in known:
        beyond = (job.delay_ms or 0.0) - expected
        cold = "cold" if beyond >= COLD_MS else "wake"
        out[id(job)] = cold if reasons[id(job)] and beyond >= WAKE_MS else "warm"
    return out


def class_rows(measured: Sequence[Job], classes: dict[int, str]) -> tuple[StartClass, ...]:
    groups = grouped(measured, lambda job: classes.get(id(job)))
    rows = []
    for name in CLASSES:
        some = groups[name]
        (delay_ms,) = ranked((job.delay_ms for job in some), 50)
        rows.append(StartClass(name, len(some), delay_ms, totals(some)[0]))
    return tuple(rows)


def strata(ok: Sequence[Job]) -> tuple[Stratum, ...]:
    groups = grouped((job for job in ok if job.total_ms is not None), lambda job: job.workers_at_submit)
    return tuple(Stratum(count, len(some), *totals(some)) for count, some in sorted(groups.items()))
