"""Capacity planning: workers and cost for a rate within an SLO, by a simulation fitted to runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

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


@dataclass(frozen=True, slots=True)
class Forecast:
    """Simulations of a fit, judged by objectives. `duration_s`: simulated time per answer, for so many jobs at most. A
    number of workers is a fleet that stays."""

    found: Fit
    slos: Sequence[Slo]
    duration_s: float = 3600.0
    burstiness: float = 1.0
    usd_per_h: float | None = None
    seed: int = 0
    most_jobs: int = MOST_JOBS

    def at(self, fleet: int | Autoscaler, rate_per_s: float) -> Answer:
        """One rate, one fleet. The first tenth of the time is not counted: a queue needs time to reach its state."""
        length_s = min(self.duration_s, self.most_jobs / rate_per_s)
        times = list(Arrivals(steady(rate_per_s, length_s), self.burstiness, self.seed).times_s())
        if not times:
            raise UsageError(f"at {rate_per_s:g}/s nothing arrives in {self.duration_s:g} s; simulate longer")
        workers = Fixed((0.0,) * fleet) if isinstance(fleet, int) else fleet
        outcome = Simulation(self.found.service, workers, self.seed).open(times)
        jobs = to_jobs(outcome, 0.1 * length_s if isinstance(fleet, int) else 0.0)
        percentiles = sorted({*SHOWN, *(one.percentile for one in self.slos if one.percentile is not None)})
        rows = {
            name: made
            for name in ("total", "delay", "exec", "overhead")
            if (made := row(name, jobs, 0, percentiles, intervals=False)) is not None
        }
        span_s = max(outcome.jobs[-1].done_s, length_s)
        per_s = len(outcome.jobs) / span_s
        worker_s = outcome.worker_s + outcome.starting_s
        exec_s = math.fsum(one.end_s - one.start_s for one in outcome.jobs)
        cost = worker_s / span_s * self.usd_per_h if self.usd_per_h is not None else None
        return Answer(
            rate_per_s=rate_per_s,
            fleet=str(fleet) if isinstance(fleet, int) else f"{fleet.kind}:{fleet.value:g}",
            workers=worker_s / span_s,
            busy_share=exec_s / self.found.service.slots / worker_s if worker_s else 0.0,
            rows=rows,
            verdicts=judge(self.slos, Figures(rows=rows, counted=len(jobs), throughput_per_s=per_s)),
            usd_per_h=cost,
            usd_per_1k=cost / 3600 / per_s * 1000 if cost is not None else None,
            cold_starts=outcome.cold_starts,
        )

    def smallest_fleet(self, rate_per_s: float, most: int) -> list[Answer]:
        """The answers that were tried, ascending: the last is the smallest fleet that holds (or the largest allowed,
        which does not)."""
        least = max(1, math.floor(rate_per_s / self.found.service.per_worker_per_s))
        tried: dict[int, Answer] = {}
        if least > most:
            return [self.at(most, rate_per_s)]
        low, high, step = least - 1, least, 1
        while high <= most:
            tried[high] = self.at(high, rate_per_s)
            if tried[high].passes:
                break
            low, high, step = high, min(high + step, most) if high < most else most + 1, step * 2
        while high <= most and high - low > 1:
            middle = (low + high) // 2
            tried[middle] = self.at(middle, rate_per_s)
            low, high = (low, middle) if tried[middle].passes else (middle, high)
        keep = [count for count in sorted(tried) if count <= high]
        return [tried[count] for count in keep[-2:]]

    def largest_rate(self, workers: int) -> Answer | None:
        """The highest rate (within 3 %) that so many workers hold; None when they hold none."""
        low, high, best = 0.0, workers * self.found.service.per_worker_per_s, None
        for _ in range(12):
            middle = (low + high) / 2
            answer = self.at(workers, middle)
            if answer.passes:
                low, best = middle, answer
            else:
                high = middle
            if best is not None and (high - low) / high < 0.03:
                break
        return best

    def highest_interval(self, workers: int, around_per_s: float) -> tuple[float, float]:
        """A 95 % interval of the highest rate that so many workers hold. Refits to bootstrap draws, each with arrivals
        of its own, give its spread and its bias; Student's t makes up for their small number."""
        cap_per_s = workers * self.found.service.per_worker_per_s
        logs = []
        for number in range(REFITS):
            again = self.found.seen.drawn_again(self.seed * REFITS + number)
            refit = replace(self.found, seen=again, service=again.service())
            other = replace(self, found=refit, seed=self.seed + number, most_jobs=MOST_JOBS // 4)
            low, high = 0.4 * around_per_s, min(1.8 * around_per_s, 1.2 * cap_per_s)
            while high / low > 1.04:
                middle = math.sqrt(low * high)
                low, high = (middle, high) if other.at(workers, middle).passes else (low, middle)
            logs.append(math.log(low * high) / 2)
        # What the draws are off by from the fit they are drawn from, the fit is off by from the truth.
        centre = 2 * math.log(around_per_s) - fmean(logs)
        reach = WIDER * STUDENT_10 * stdev(logs) * math.sqrt(1 + 1 / REFITS)
        return math.exp(centre - reach), math.exp(centre + reach)

    def with_interval(self, answer: Answer) -> Answer:
        """The same answer, judged by the whole interval of what its (fixed) fleet holds."""
        workers = int(answer.fleet)
        best = self.largest_rate(workers)
        interval = (0.0, 0.0) if best is None else self.highest_interval(workers, best.rate_per_s)
        return replace(answer, highest_per_s=interval)
