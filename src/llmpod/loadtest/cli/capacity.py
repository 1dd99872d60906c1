"""Command `capacity`: how many workers hold a rate within an SLO, and what that costs, simulated from measured runs."""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llmpod.loadtest.analysis import slo
from llmpod.loadtest.analysis.latency import Row
from llmpod.loadtest.analysis.slo import Slo
from llmpod.loadtest.capacity.capacity import REFITS, SHOWN, Answer, Forecast
from llmpod.loadtest.capacity.fit import Fit, fit, on_one_axis
from llmpod.loadtest.capacity.simulate import Autoscaler
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.options import CapacityOptions
from llmpod.loadtest.report.console import make_console, plain_table
from llmpod.loadtest.units import show_ms, show_rate, show_share, show_usd

SIMULATED = frozenset({"total", "delay", "exec", "overhead", "error_rate", "success_rate", "throughput"})


def act(options: CapacityOptions, environment: Environment) -> Exit:
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
    forecast = Forecast(found, slos, options.duration, options.burstiness, options.gpu_price, options.seed)
    answers: list[Answer] = []
    failed = False
    for rate in options.request_rate:
        *less, enough = forecast.smallest_fleet(rate, options.max_workers)
        tried = [*less, forecast.with_interval(enough)]
        while tried[-1].word == "unsure" and (workers := int(tried[-1].fleet)) < options.max_workers:
            tried.append(forecast.with_interval(forecast.at(workers + 1, rate)))
        answers += tried
        failed = failed or tried[-1].word != "holds"
        if options.scaler:
            cold = options.cold_start if options.cold_start is not None else found.cold_start_s or 60.0
            answers.append(forecast.at(parse_scaler(options.scaler, options, cold), rate))
    if not options.request_rate:
        bests = [(count, best) for count in range(1, 6) if (best := forecast.largest_rate(count)) is not None]
        for count, best in bests:
            low, high = forecast.highest_interval(count, best.rate_per_s)
            # What can be relied on is the low end: that is the answer.
            answers.append(replace(forecast.at(count, low), highest_per_s=(low, high)))
        failed = not answers
    if options.format == "json":
        sys.stdout.write(json.dumps(_json(found, answers), indent=1) + "\n")
    else:
        _show(found, answers, slos, make_console(plain=environment.plain), by_rate=bool(options.request_rate))
    return Exit.SLO_FAILED if failed else Exit.PASS


def parse_scaler(text: str, options: CapacityOptions, cold_start_s: float) -> Autoscaler:
    found = re.fullmatch(r"(REQUEST_COUNT|QUEUE_DELAY):(\d+(?:\.\d+)?)", text)
    if found is None or not float(found[2]):
        raise UsageError(f"--scaler '{text}': write REQUEST_COUNT:4 or QUEUE_DELAY:4")
    return Autoscaler(
        kind="REQUEST_COUNT" if found[1] == "REQUEST_COUNT" else "QUEUE_DELAY",
        value=float(found[2]),
        workers_min=options.workers_min,
        workers_max=options.max_workers,
        cold_start_s=cold_start_s,
        idle_timeout_s=options.idle_timeout,
    )


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
    rate = "rate" if by_rate else "highest rate"
    times = ("total p50", "p95", "p99", "delay p95")
    table = plain_table(rate, "workers", "these hold", "", *times, "busy", "$/h", "$/1k requests")
    for one in answers:
        auto = ":" in one.fleet
        fleet = f"{one.fleet}: {one.workers:.1f} on average, {one.cold_starts} cold starts" if auto else one.fleet
        table.add_row(
            show_rate(one.rate_per_s),
            fleet,
            _span(one.highest_per_s),
            _word(one),
            *(show_ms(one.rows["total"].value(p)) for p in SHOWN),
            show_ms(one.rows["delay"].value(95)),
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

    service = dataclasses.asdict(found.service)
    times_s = sorted(service.pop("exec_s"))
    service["exec_p50_s"] = times_s[len(times_s) // 2]
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
