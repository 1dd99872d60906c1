"""Capacity planning: workers and cost for a rate within an SLO, by a simulation fitted to runs."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmpod.loadtest.analysis import slo
from llmpod.loadtest.analysis.latency import Row, row
from llmpod.loadtest.analysis.slo import Slo, Verdict
from llmpod.loadtest.capacity.fit import Fit, fit, on_one_axis
from llmpod.loadtest.capacity.simulate import Autoscaler, Fixed, Outcome, Simulation
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.arrivals import Arrivals, steady
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.units import show_ms, show_rate, show_share, show_usd

MOST_JOBS = 10_000
SHOWN = (50.0, 95.0, 99.0)
REFITS = 10
STUDENT_10 = 2.262  # two-sided 95 % of Student's t for so many refits


SIMULATED = frozenset({"total", "delay", "exec", "overhead", "error_rate", "success_rate", "throughput"})


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
        """As fitted to all jobs, without a word on how sure that is."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def word(self) -> str:
        """holds or fails where the whole interval says so, else unsure."""
        if self.highest_per_s is None:
            return "holds" if self.passes else "fails"
        low, high = self.highest_per_s
        return "holds" if self.rate_per_s <= low and self.passes else "fails" if self.rate_per_s > high else "unsure"


@dataclass(frozen=True, slots=True)
class _Judged:
    rows: dict[str, Row]
    counted: int
    throughput_per_s: float | None
    failed: int = 0
    achieved_per_s: float | None = None
    tokens_per_s: float | None = None
    goodput_share: float | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    validated: dict[str, tuple[int, int]] = field(default_factory=dict)
    drift: float | None = None


def to_jobs(outcome: Outcome, skip_s: float = 0.0) -> list[Job]:
    """Simulated jobs as records, those sent in the first `skip_s` seconds (the fill-up) left out."""
    out = []
    for index, one in enumerate(outcome.jobs):
        if one.sent_s < skip_s:
            continue
        job = Job("simulated", index, "measured", "run", ok=True, worker_id=f"w{one.worker}")
        job.sent_ms, job.done_ms = one.sent_s * 1000, one.done_s * 1000
        job.total_ms, job.delay_ms, job.exec_ms = (
            one.total_s * 1000,
            one.delay_s * 1000,
            (one.end_s - one.start_s) * 1000,
        )
        out.append(job)
    return out


def simulate_rate(
    found: Fit,
    fleet: Fixed | Autoscaler,
    label: str,
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
    worker_s = outcome.worker_s + outcome.starting_s
    exec_s = math.fsum(one.end_s - one.start_s for one in outcome.jobs)
    workers = worker_s / span_s
    cost = workers * usd_per_h if usd_per_h is not None else None
    return Answer(
        rate_per_s=rate_per_s,
        fleet=label,
        workers=workers,
        busy_share=exec_s / found.service.slots / worker_s if worker_s else 0.0,
        rows=rows,
        verdicts=slo.judge(slos, _Judged(rows, len(jobs), len(outcome.jobs) / span_s)),
        usd_per_h=cost,
        usd_per_1k=cost / 3600 / (len(outcome.jobs) / span_s) * 1000 if cost is not None else None,
        cold_starts=outcome.cold_starts,
    )


def smallest_fleet(found: Fit, rate_per_s: float, slos: Sequence[Slo], most: int, **how: Any) -> list[Answer]:
    """The answers that were tried, ascending: the last is the smallest fleet that holds (or the largest allowed, which
    does not)."""

    def at(workers: int) -> Answer:
        return simulate_rate(found, Fixed((0.0,) * workers), f"{workers}", rate_per_s, slos, **how)

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
        answer = simulate_rate(found, Fixed((0.0,) * workers), f"{workers}", middle, slos, **how)
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
            answer = simulate_rate(refit, fleet, "", middle, slos, most_jobs=MOST_JOBS // 4, seed=seed + number, **how)
            low, high = (middle, high) if answer.passes else (low, middle)
        logs.append(math.log(low * high) / 2)
    # What the draws are off by from the fit they are drawn from, the fit is off by from the truth.
    centre = 2 * math.log(around_per_s) - fmean(logs)
    reach = STUDENT_10 * stdev(logs) * math.sqrt(1 + 1 / REFITS)
    return math.exp(centre - reach), math.exp(centre + reach)


def with_interval(answer: Answer, found: Fit, slos: Sequence[Slo], **how: Any) -> Answer:
    """The same answer, judged by the whole interval of what its (fixed) fleet holds."""
    count = int(answer.fleet)
    best = largest_rate(found, count, slos, **how)
    if best is None:
        return replace(answer, highest_per_s=(0.0, 0.0))
    return replace(answer, highest_per_s=highest_interval(found, Fixed((0.0,) * count), best.rate_per_s, slos, **how))


def parse_scaler(text: str, options: argparse.Namespace, cold_start_s: float) -> Autoscaler:
    kind, _, value = text.partition(":")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if kind not in ("REQUEST_COUNT", "QUEUE_DELAY") or number <= 0:
        raise UsageError(f"--scaler '{text}': write REQUEST_COUNT:4 or QUEUE_DELAY:4")
    return Autoscaler(
        kind="REQUEST_COUNT" if kind == "REQUEST_COUNT" else "QUEUE_DELAY",
        value=number,
        workers_min=options.workers_min,
        workers_max=options.max_workers,
        cold_start_s=cold_start_s,
        idle_timeout_s=options.idle_timeout,
    )


def answer(options: argparse.Namespace, console: Console) -> Exit:
    found = fit(on_one_axis(run_files.read(Path(directory)).jobs for directory in options.directories))
    # Of a preset, what a simulation can judge: it has no tokens and no policy.
    preset = [one for name in options.slo_preset for one in slo.preset(name) if one.name in SIMULATED]
    slos = [slo.parse(text) for text in options.slo] + preset
    if not slos:
        raise UsageError(
            "capacity needs an --slo or --slo-preset: any number of workers holds any rate if nothing is asked of it"
        )
    for one in slos:
        if one.name not in SIMULATED:
            raise UsageError(f"capacity cannot simulate '{one.name}'")
    how: dict[str, Any] = {
        "duration_s": options.duration,
        "burstiness": options.burstiness,
        "usd_per_h": options.gpu_price,
        "seed": options.seed,
    }
    answers: list[Answer] = []
    failed = False
    for rate in options.request_rate or []:
        *less, enough = smallest_fleet(found, rate, slos, options.max_workers, **how)
        tried = [*less, with_interval(enough, found, slos, **how)]
        while tried[-1].word == "unsure" and int(tried[-1].fleet) < options.max_workers:
            count = int(tried[-1].fleet) + 1
            more = simulate_rate(found, Fixed((0.0,) * count), f"{count}", rate, slos, **how)
            tried.append(with_interval(more, found, slos, **how))
        answers += tried
        failed = failed or tried[-1].word != "holds"
        if options.scaler:
            cold = options.cold_start if options.cold_start is not None else found.cold_start_s or 60.0
            fleet = parse_scaler(options.scaler, options, cold)
            answers.append(simulate_rate(found, fleet, options.scaler, rate, slos, **how))
    if not options.request_rate:
        bests = [best for count in range(1, 6) if (best := largest_rate(found, count, slos, **how)) is not None]
        for best in bests:
            fixed = Fixed((0.0,) * int(best.fleet))
            low, high = highest_interval(found, fixed, best.rate_per_s, slos, **how)
            # What can be relied on is the low end: that is the answer.
            sure = simulate_rate(found, fixed, best.fleet, low, slos, **how)
            answers.append(replace(sure, highest_per_s=(low, high)))
        failed = not answers
    if options.format == "json":
        sys.stdout.write(json.dumps(_json(found, answers), indent=1) + "\n")
    else:
        _show(found, answers, slos, console, by_rate=bool(options.request_rate))
    return Exit.SLO_FAILED if failed else Exit.PASS


def _show(found: Fit, answers: Sequence[Answer], slos: Sequence[Slo], console: Console, *, by_rate: bool) -> None:
    service = found.service
    ordered = sorted(service.exec_s)
    console.print(
        f"fitted to {found.jobs} jobs: execution p50 {show_ms(ordered[len(ordered) // 2] * 1000)}, "
        f"{show_ms(service.pickup_idle_s * 1000)} to an idle worker, "
        f"{show_ms(service.pickup_busy_s * 1000)} between two jobs, "
        f"reply {show_ms(service.reply_s * 1000)}, {service.slots} at once per worker"
        + (f" (each neighbour slows by {service.slowdown:.0%})" if service.slowdown else "")
        + f"; at most {show_rate(service.per_worker_per_s)} per worker"
    )
    for note in found.notes:
        console.print(f"! {note}", style="yellow")
    console.print(f"objectives: {', '.join(one.text for one in slos)}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in (
        "rate" if by_rate else "highest rate",
        "workers",
        "these hold",
        "",
        "total p50",
        "p95",
        "p99",
        "delay p95",
        "busy",
        "$/h",
        "$/1k requests",
    ):
        table.add_column(name, justify="right")
    for one in answers:
        total, delay = one.rows["total"], one.rows["delay"]
        auto = ":" in one.fleet
        fleet = f"{one.fleet}: {one.workers:.1f} on average, {one.cold_starts} cold starts" if auto else one.fleet
        cells = [show_ms(found_q.value) if (found_q := total.at(p)) else "" for p in SHOWN]
        late = delay.at(95.0)
        table.add_row(
            show_rate(one.rate_per_s),
            fleet,
            _span(one.highest_per_s),
            _word(one),
            *cells,
            show_ms(late.value) if late else "",
            show_share(one.busy_share),
            show_usd(one.usd_per_h),
            show_usd(one.usd_per_1k),
        )
    console.print(table)
    console.print(
        "simulated Poisson arrivals; a forecast from the runs named above, not a measurement. Intervals (95 %) come "
        f"from {REFITS} refits to draws of the jobs: holds and fails are said by the whole interval",
        style="dim",
    )


def _span(highest_per_s: tuple[float, float] | None) -> str:
    return f"{highest_per_s[0]:.2g} to {highest_per_s[1]:.2g}/s" if highest_per_s else ""


def _word(one: Answer) -> Text:
    missed = next((verdict.slo.text for verdict in one.verdicts if not verdict.passed), "")
    styles = {"holds": "green", "unsure": "yellow", "fails": "red"}
    return Text.assemble((one.word, styles[one.word]), f" {missed}" if missed else "")


def _json(found: Fit, answers: Sequence[Answer]) -> dict[str, Any]:
    def row_json(made: Row) -> dict[str, float]:
        return {f"p{q.p:g}_ms": round(q.value, 3) for q in made.quantiles}

    service = {
        **dataclasses.asdict(found.service),
        "exec_s": None,
        "exec_p50_s": sorted(found.service.exec_s)[len(found.service.exec_s) // 2],
    }
    del service["exec_s"]
    return {
        "fit": {"service": service, "cold_start_s": found.cold_start_s, "jobs": found.jobs, "notes": list(found.notes)},
        "answers": [
            {
                "rate_per_s": one.rate_per_s,
                "fleet": one.fleet,
                "workers": round(one.workers, 3),
                "holds": one.word == "holds",
                "word": one.word,
                "highest_per_s": list(one.highest_per_s) if one.highest_per_s else None,
                "busy_share": round(one.busy_share, 4),
                "usd_per_h": one.usd_per_h,
                "usd_per_1k": one.usd_per_1k,
                **{name: row_json(made) for name, made in one.rows.items()},
            }
            for one in answers
        ],
    }
