"""How many workers hold a rate within an SLO, and what that costs: a simulation fitted to measured runs."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmpod.loadtest import journal, slo
from llmpod.loadtest.arrivals import Arrivals, steady
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.fit import Fit, fit, on_one_axis
from llmpod.loadtest.measures import Row, row
from llmpod.loadtest.records import Job
from llmpod.loadtest.simulate import Autoscaler, Fixed, Outcome, Simulation
from llmpod.loadtest.slo import Slo, Verdict
from llmpod.loadtest.units import show_ms, show_rate, show_share, show_usd

MOST_JOBS = 10_000
SHOWN = (50.0, 95.0, 99.0)


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

    @property
    def holds(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


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
) -> Answer:
    """One rate, one fleet. The first tenth of the time is not counted: a queue needs time to reach its state."""
    length_s = min(duration_s, MOST_JOBS / rate_per_s)
    times = list(Arrivals(steady(rate_per_s, length_s), burstiness, seed).times_s())
    if not times:
        raise UsageError(f"at {rate_per_s:g}/s nothing arrives in {duration_s:g} s; simulate longer")
    outcome = Simulation(found.service, fleet, seed).open(times)
    jobs = to_jobs(outcome, 0.1 * length_s if isinstance(fleet, Fixed) else 0.0)
    percentiles = sorted({*SHOWN, *(one.percentile for one in slos if one.percentile is not None)})
    rows = {
        name: made
        for name in ("total", "delay", "exec", "overhead")
        if (made := row(name, jobs, 0, percentiles)) is not None
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
        if tried[high].holds:
            break
        low, high, step = high, min(high + step, most) if high < most else most + 1, step * 2
    while high <= most and high - low > 1:
        middle = (low + high) // 2
        tried[middle] = at(middle)
        low, high = (low, middle) if tried[middle].holds else (middle, high)
    keep = [count for count in sorted(tried) if count <= high]
    return [tried[count] for count in keep[-2:]]


def largest_rate(found: Fit, workers: int, slos: Sequence[Slo], **how: Any) -> Answer | None:
    """The highest rate (within 3 %) that so many workers hold; None when they hold none."""
    low, high, best = 0.0, workers * found.service.per_worker_per_s, None
    for _ in range(12):
        middle = (low + high) / 2
        answer = simulate_rate(found, Fixed((0.0,) * workers), f"{workers}", middle, slos, **how)
        if answer.holds:
            low, best = middle, answer
        else:
            high = middle
        if best is not None and (high - low) / high < 0.03:
            break
    return best


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
    found = fit(on_one_axis(journal.read(Path(directory)).jobs for directory in options.directories))
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
        tried = smallest_fleet(found, rate, slos, options.max_workers, **how)
        answers += tried
        failed = failed or not tried[-1].holds
        if options.scaler:
            cold = options.cold_start if options.cold_start is not None else found.cold_start_s or 60.0
            fleet = parse_scaler(options.scaler, options, cold)
            answers.append(simulate_rate(found, fleet, options.scaler, rate, slos, **how))
    if not options.request_rate:
        answers = [best for count in range(1, 6) if (best := largest_rate(found, count, slos, **how)) is not None]
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
            Text("holds", style="green")
            if one.holds
            else Text.assemble(("fails ", "red"), next(v.slo.text for v in one.verdicts if not v.passed)),
            *cells,
            show_ms(late.value) if late else "",
            show_share(one.busy_share),
            show_usd(one.usd_per_h),
            show_usd(one.usd_per_1k),
        )
    console.print(table)
    console.print("simulated Poisson arrivals; a forecast from the runs named above, not a measurement", style="dim")


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
                "holds": one.holds,
                "busy_share": round(one.busy_share, 4),
                "usd_per_h": one.usd_per_h,
                "usd_per_1k": one.usd_per_1k,
                **{name: row_json(made) for name, made in one.rows.items()},
            }
            for one in answers
        ],
    }
