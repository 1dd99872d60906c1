"""Capacity planning: workers and cost for a rate within an SLO, by a simulation fitted to runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from llmpod.loadtest.analysis.latency import Row, row
from llmpod.loadtest.analysis.slo import Figures, Slo, Verdict, judge
from llmpod.loadtest.capacity.fit import Fit
from llmpod.loadtest.capacity.simulate import Autoscaler, Fixed, Outcome, Simulation
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.arrivals import Arrivals, steady
from llmpod.loadtest.model.job_record import Job

MOST_JOBS = 10_000
SHOWN = (50.0, 95.0, 99.0)
REFITS = 10
STUDENT_10 = 2.262  # two-sided 95 % of Student's t for so many refits
WIDER = 1.25  # refits to draws of a few jobs differ less than fits to runs do


@dataclass(frozen=True, slots=True)
class Answer:
    """One rate on one fleet, simulated. `usd_per_h` counts every worker as up all the time (or as the autoscaler had
    them)."""

    rate_per_s: float
    fleet: str
    workers: float
    busy_share: float
    rows: dict[str, Row]
    verdicts: tuple[Verdict, ...]
    usd_per_h: float | None
    usd_per_1k: float | None
    cold_starts: int = 0
    # The highest rate that this fleet holds, as an interval of 95 % from refits to bootstrap draws of the jobs.
    highest_per_s: tuple[float, float] | None = None

    @property
    def passes(self) -> bool:
        """As fitted to all jobs; the uncertainty is in `word`."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def word(self) -> str:
        """holds or fails where the whole interval says so, else unsure."""
        if self.highest_per_s is None:
            return "holds" if self.passes else "fails"
        low, high = self.highest_per_s
        return "holds" if self.rate_per_s <= low and self.passes else "fails" if self.rate_per_s > high else "unsure"


def to_jobs(outcome: Outcome, skip_s: float = 0.0) -> list[Job]:
    """Simulated jobs as records, those sent in the first `skip_s` seconds (the fill-up) left out."""
    out = []
    for index, one in enumerate(outcome.jobs):
        if one.sent_s < skip_s:
            continue
        job = Job("simulated", index, "measured", "run", ok=True, worker_id=f"w{one.worker}")
        job.sent_ms, job.done_ms, job.total_ms = one.sent_s * 1000, one.done_s * 1000, one.total_s * 1000
        job.delay_ms, job.exec_ms = one.delay_s * 1000, (one.end_s - one.start_s) * 1000
        out.append(job)
    return out


def simulate_rate(
    found: Fit,
    fleet: Fixed | Autoscaler,
    rate_per_s: float,
    slos: Sequence[Slo],
    *,
    duration_s: float = 3600.0,
    burstiness: float = 1.0,
    usd_per_h: float | None = None,
    seed: int = 0,
    most_jobs: int = MOST_JOBS,
) -> Answer:
    """One rate, one fleet. The first tenth of the time is not counted: a queue needs time to reach its state."""
    length_s = min(duration_s, most_jobs / rate_per_s)
    times = list(Arrivals(steady(rate_per_s, length_s), burstiness, seed).times_s())
    if not times:
        raise UsageError(f"at {rate_per_s:g}/s nothing arrives in {duration_s:g} s; simulate longer")
    outcome = Simulation(found.service, fleet, seed).open(times)
    jobs = to_jobs(outcome, 0.1 * length_s if isinstance(fleet, Fixed) else 0.0)
    percentiles = sorted({*SHOWN, *(one.percentile for one in slos if one.percentile is not None)})
    rows = {
        name: made
        for name in ("total", "delay", "exec", "overhead")
        if (made := row(name, jobs, 0, percentiles, intervals=False)) is not None
    }
    span_s = max(outcome.jobs[-1].done_s, length_s)
    per_s = len(outcome.jobs) / span_s
    worker_s = outcome.worker_s + outcome.starting_s
    exec_s = math.fsum(one.end_s - one.start_s for one in outcome.jobs)
    workers = worker_s / span_s
    cost = workers * usd_per_h if usd_per_h is not None else None
    return Answer(
        rate_per_s=rate_per_s,
        fleet=str(len(fleet.ready_s)) if isinstance(fleet, Fixed) else f"{fleet.kind}:{fleet.value:g}",
        workers=workers,
        busy_share=exec_s / found.service.slots / worker_s if worker_s else 0.0,
        rows=rows,
        verdicts=judge(slos, Figures(rows=rows, counted=len(jobs), throughput_per_s=per_s)),
        usd_per_h=cost,
        usd_per_1k=cost / 3600 / per_s * 1000 if cost is not None else None,
        cold_starts=outcome.cold_starts,
    )


def smallest_fleet(found: Fit, rate_per_s: float, slos: Sequence[Slo], most: int, **how: Any) -> list[Answer]:
    """The answers that were tried, ascending: the last is the smallest fleet that holds (or the largest allowed, which
    does not)."""

    def at(workers: int) -> Answer:
        return simulate_rate(found, Fixed((0.0,) * workers), rate_per_s, slos, **how)

    least = max(1, math.floor(rate_per_s / found.service.per_worker_per_s))
    tried: dict[int, Answer] = {}
    if least > most:
        return [at(most)]
    low, high, step = least - 1, least, 1
    while high <= most:
        tried[high] = at(high)
        if tried[high].passes:
            break
        low, high, step = high, min(high + step, most) if high < most else most + 1, step * 2
    while high <= most and high - low > 1:
        middle = (low + high) // 2
        tried[middle] = at(middle)
        low, high = (low, middle) if tried[middle].passes else (middle, high)
    keep = [count for count in sorted(tried) if count <= high]
    return [tried[count] for count in keep[-2:]]


def largest_rate(found: Fit, workers: int, slos: Sequence[Slo], **how: Any) -> Answer | None:
    """The highest rate (within 3 %) that so many workers hold; None when they hold none."""
    low, high, best = 0.0, workers * found.service.per_worker_per_s, None
    for _ in range(12):
        middle = (low + high) / 2
        answer = simulate_rate(found, Fixed((0.0,) * workers), middle, slos, **how)
        if answer.passes:
            low, best = middle, answer
        else:
            high = middle
        if best is not None and (high - low) / high < 0.03:
            break
    return best


def highest_interval(
    found: Fit, fleet: Fixed, around_per_s: float, slos: Sequence[Slo], *, seed: int = 0, **how: Any
) -> tuple[float, float]:
    """A 95 % interval of the highest rate that a fleet holds. Refits to bootstrap draws, each with arrivals of its own,
    give its spread and its bias; Student's t makes up for their small number."""
    cap_per_s = len(fleet.ready_s) * found.service.per_worker_per_s
    logs = []
    for number in range(REFITS):
        again = found.seen.drawn_again(seed * REFITS + number)
        refit = replace(found, seen=again, service=again.service())
        low, high = 0.4 * around_per_s, min(1.8 * around_per_s, 1.2 * cap_per_s)
        while high / low > 1.04:
            middle = math.sqrt(low * high)
            answer = simulate_rate(refit, fleet, middle, slos, most_jobs=MOST_JOBS // 4, seed=seed + number, **how)
            low, high = (middle, high) if answer.passes else (low, middle)
        logs.append(math.log(low * high) / 2)
    # What the draws are off by from the fit they are drawn from, the fit is off by from the truth.
    centre = 2 * math.log(around_per_s) - fmean(logs)
    reach = WIDER * STUDENT_10 * stdev(logs) * math.sqrt(1 + 1 / REFITS)
    return math.exp(centre - reach), math.exp(centre + reach)


def with_interval(answer: Answer, found: Fit, slos: Sequence[Slo], **how: Any) -> Answer:
    """The same answer, judged by the whole interval of what its (fixed) fleet holds."""
    count = int(answer.fleet)
    best = largest_rate(found, count, slos, **how)
    if best is None:
        return replace(answer, highest_per_s=(0.0, 0.0))
    return replace(answer, highest_per_s=highest_interval(found, Fixed((0.0,) * count), best.rate_per_s, slos, **how))
