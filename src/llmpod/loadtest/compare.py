"""Two runs beside each other: is B slower than A, by how much, and could it be chance?"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmpod.loadtest import journal
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.journal import Recorded
from llmpod.loadtest.measures import METRICS
from llmpod.loadtest.records import Job
from llmpod.loadtest.stats import difference_interval, effective_n, nearest_rank
from llmpod.loadtest.units import show_ms, show_share
from llmpod.loadtest.viewing import parse_percentiles

COMPARED = ("total", "delay", "exec", "overhead", "scheduled", "ttft", "tpot")


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A in ms, with its 95 % interval. `clear`: the interval does not contain 0."""

    phase: str
    metric: str
    p: float
    a_ms: float
    b_ms: float
    low_ms: float
    high_ms: float
    n_a: int
    n_b: int

    @property
    def clear(self) -> bool:
        return self.low_ms > 0 or self.high_ms < 0

    @property
    def share(self) -> float | None:
        return (self.b_ms - self.a_ms) / self.a_ms if self.a_ms > 0 else None


def compare(a: Recorded, b: Recorded, percentiles: Sequence[float]) -> list[Difference]:
    """Phases are matched by name; two runs of one phase each are matched whatever they are called."""
    phases_a, phases_b = _phases(a), _phases(b)
    pairs = [(name, name) for name in phases_a if name in phases_b]
    if not pairs and len(phases_a) == len(phases_b) == 1:
        pairs = [(next(iter(phases_a)), next(iter(phases_b)))]
    out = []
    for name_a, name_b in pairs:
        for metric in COMPARED:
            values_a, values_b = _values(phases_a[name_a], metric), _values(phases_b[name_b], metric)
            if len(values_a) < 2 or len(values_b) < 2:
                continue
            eff_a, eff_b = effective_n(values_a), effective_n(values_b)
            values_a.sort()
            values_b.sort()
            for p in percentiles:
                low, high = difference_interval(values_a, values_b, p, eff_a, eff_b)
                at_a, at_b = nearest_rank(values_a, p), nearest_rank(values_b, p)
                label = name_a if name_a == name_b else f"{name_a} / {name_b}"
                out.append(Difference(label, metric, p, at_a, at_b, low, high, len(values_a), len(values_b)))
    return out


def _phases(recorded: Recorded) -> dict[str, list[Job]]:
    out: dict[str, list[Job]] = {}
    for job in sorted(recorded.jobs, key=lambda one: one.sent_ms or 0.0):
        if job.counts:
            out.setdefault(job.phase, []).append(job)
    return out


def _values(jobs: Sequence[Job], metric: str) -> list[float]:
    read = METRICS[metric]
    return [value for job in jobs if job.ok and (value := read(job)) is not None]


def _error_rate(recorded: Recorded) -> float | None:
    counted = [job for job in recorded.jobs if job.counts]
    return sum(1 for job in counted if not job.ok) / len(counted) if counted else None


def compare_directories(options: argparse.Namespace, console: Console) -> Exit:
    a, b = journal.read(Path(options.a)), journal.read(Path(options.b))
    found = compare(a, b, parse_percentiles(options.percentiles))
    if not found:
        raise UsageError(
            f"{options.a} and {options.b} have no phase in common: {', '.join(_phases(a))} and {', '.join(_phases(b))}"
        )
    limit = options.fail_on_slower
    slower = [one for one in found if limit is not None and one.metric == "total" and one.low_ms > limit * one.a_ms]
    if options.format == "json":
        rows = [{**asdict(one), "clear": one.clear, "share": one.share} for one in found]
        sys.stdout.write(
            json.dumps({"differences": rows, "error_rate": [_error_rate(a), _error_rate(b)]}, indent=1) + "\n"
        )
    else:
        _show(found, options, console)
        console.print(f"error rate: {show_share(_error_rate(a))} and {show_share(_error_rate(b))}")
        for one in slower:
            console.print(f"✗ {one.phase} total p{one.p:g} is certainly more than {limit:.0%} slower", style="bold red")
    return Exit.SLO_FAILED if slower else Exit.PASS


def _show(found: Sequence[Difference], options: argparse.Namespace, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("phase", "metric", "", "A", "B", "B - A", "95% interval", "", "n"):
        table.add_column(name, justify="left" if name in ("phase", "metric") else "right")
    for one in found:
        share = f" ({one.share:+.1%})" if one.share is not None else ""
        worse = one.low_ms > 0
        word = (
            Text("slower" if worse else "faster", style="red" if worse else "green")
            if one.clear
            else Text("no clear difference", style="dim")
        )
        table.add_row(
            one.phase,
            one.metric,
            f"p{one.p:g}",
            show_ms(one.a_ms),
            show_ms(one.b_ms),
            f"{'+' if one.b_ms >= one.a_ms else ''}{show_ms(one.b_ms - one.a_ms)}{share}",
            f"{show_ms(one.low_ms)} to {show_ms(one.high_ms)}",
            word,
            f"{one.n_a}, {one.n_b}",
        )
    console.print(f"A {options.a}\nB {options.b}", style="dim")
    console.print(table)
