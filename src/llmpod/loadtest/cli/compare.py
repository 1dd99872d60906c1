"""Command `compare`: differences of two runs, each with an interval and a test.

Every line is a test, and all lines of a comparison are wrong together in at most 5 % of comparisons of equal runs: each
is tested at 5 % divided by their number (Bonferroni). Phases that both runs have are also compared together ("all
phases"). What the samples do not support is called unknown, and each line says which difference would have been found
in four of five such pairs.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist, geometric_mean

from rich.console import Console
from rich.text import Text

from llmpod.loadtest.analysis.latency import METRICS
from llmpod.loadtest.analysis.phase import PhaseReport, View
from llmpod.loadtest.analysis.stretches import BATCHES
from llmpod.loadtest.cli.quality import compare_quality, is_quality
from llmpod.loadtest.cli.viewing import make_saved_view, parse_percentiles
from llmpod.loadtest.dependence import SHORT
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.job_record import Job, grouped
from llmpod.loadtest.model.run_files import Recorded
from llmpod.loadtest.options import CompareOptions
from llmpod.loadtest.report.console import make_console, plain_table
from llmpod.loadtest.report.report import build
from llmpod.loadtest.stats import Quantile, difference_interval, pooled, quantiles, student, two_shares
from llmpod.loadtest.units import show_ms, show_rate, show_share, show_usd

COMPARED = ("total", "delay", "exec", "overhead", "scheduled", "ttft", "tpot")
POWER = 0.8
SHOW: dict[str, Callable[[float], str]] = {
    "throughput": show_rate,
    "cost per 1k requests": show_usd,
    "output tokens/s": "{:.1f}".format,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A in ms, with its 95 % interval. `clear`: it is beyond chance with all lines of the comparison taken
    together; None where there are too few samples to tell. `detectable`: the share of A that would be found in four of
    five such pairs."""

    phase: str
    metric: str
    p: float
    a_ms: float
    b_ms: float
    low_ms: float | None
    high_ms: float | None
    n_a: int
    n_b: int
    clear: bool | None
    detectable: float | None

    @property
    def share(self) -> float | None:
        return (self.b_ms - self.a_ms) / self.a_ms if self.a_ms > 0 else None


@dataclass(frozen=True, slots=True)
class Rate:
    """A figure that is not a percentile: throughput, tokens, cost, a share of jobs. `worse`: more of it is bad."""

    phase: str
    name: str
    a: float
    b: float
    clear: bool | None
    worse: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    differences: list[Difference]
    rates: list[Rate]
    lines: int


def compare(a: Recorded, b: Recorded, percentiles: Sequence[float], view: View | None = None) -> Comparison:
    """Phases are matched by name; two runs of one phase each are matched whatever they are called."""
    phases_a, phases_b = _phases(a), _phases(b)
    pairs = [(name, name) for name in phases_a if name in phases_b]
    if not pairs and len(phases_a) == len(phases_b) == 1:
        pairs = [(next(iter(phases_a)), next(iter(phases_b)))]
    metrics = [
        (x, y, metric, values_a, values_b)
        for x, y in pairs
        for metric in COMPARED
        if len(values_a := _values(phases_a[x], metric)) > 1 and len(values_b := _values(phases_b[y], metric)) > 1
    ]
    reports_a = {one.phase.name: one for one in build(a, view or make_saved_view(a)).phases}
    reports_b = {one.phase.name: one for one in build(b, view or make_saved_view(b)).phases}
    rates = [rate for x, y in pairs if x in reports_a and y in reports_b for rate in _rates(reports_a[x], reports_b[y])]
    shared = [metric for metric, times in Counter(one[2] for one in metrics).items() if times > 1]
    lines = (len(metrics) + len(shared)) * len(percentiles) + len(rates)
    level = 0.05 / max(1, lines)
    found = [
        _difference(_label(x, y), metric, p, values_a, values_b, level)
        for x, y, metric, values_a, values_b in metrics
        for p in percentiles
    ]
    for metric in shared:
        for p in percentiles:
            found += _pooled([one for one in found if (one.metric, one.p) == (metric, p)], level)
    return Comparison(found, [replace(rate, clear=is_clear(level)) for rate, is_clear in rates], lines)


def _label(a: str, b: str) -> str:
    return a if a == b else f"{a} / {b}"


def _difference(label: str, metric: str, p: float, a: Sequence[float], b: Sequence[float], level: float) -> Difference:
    hidden = metric != "exec"  # jobs do not wait for each other while they run
    (of_a,), (of_b,) = quantiles(a, [p], hidden=hidden), quantiles(b, [p], hidden=hidden)
    at_a, at_b = of_a.value, of_b.value
    pair = sorted(a), sorted(b), p
    found = difference_interval(*pair, of_a.worth, of_b.worth)
    if found is None:
        return Difference(label, metric, p, at_a, at_b, None, None, len(a), len(b), None, None)
    tested = difference_interval(*pair, _size(a, of_a, level), _size(b, of_b, level), 1 - level)
    clear = tested is not None and (min(*found, *tested) > 0 or max(*found, *tested) < 0)
    detectable = _detectable((found[1] - found[0]) / 2, level) / at_a if at_a > 0 else None
    return Difference(label, metric, p, at_a, at_b, *found, len(a), len(b), clear, detectable)


def _size(values: Sequence[float], found: Quantile, level: float) -> float:
    """The number of independent samples that a test at that level counts with."""
    return found.n_eff if found.n < SHORT else quantiles(values, [found.p], 1 - level)[0].worth


def _detectable(reach: float, level: float) -> float:
    """What a test at that level finds in four of five cases, from the half-width of a 95 % interval."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)) * reach / normal.inv_cdf(0.975)


def _pooled(phases: Sequence[Difference], level: float) -> list[Difference]:
    """One percentile over all phases, if two or more know it, from the phases' log ratios. The phases are different
    loads, but a slower endpoint is slower in all of them."""
    known = [
        (one, (one.high_ms - one.low_ms) / 2 / math.sqrt(one.a_ms * one.b_ms))
        for one in phases
        if one.low_ms is not None and one.high_ms is not None and one.high_ms > one.low_ms and one.a_ms * one.b_ms > 0
    ]
    if len(known) < 2:
        return []
    ratio, reach = pooled([(math.log(one.b_ms / one.a_ms), error) for one, error in known])
    a_ms, normal = geometric_mean(one.a_ms for one, _ in known), NormalDist()
    low, b_ms, high = (a_ms * math.exp(one) for one in (ratio - reach, ratio, ratio + reach))
    n_a, n_b = sum(one.n_a for one, _ in known), sum(one.n_b for one, _ in known)
    clear = abs(ratio) * normal.inv_cdf(0.975) > reach * normal.inv_cdf(1 - level / 2)
    metric, p = known[0][0].metric, known[0][0].p
    found = _detectable(reach, level)
    return [Difference("all phases", metric, p, a_ms, b_ms, low - a_ms, high - a_ms, n_a, n_b, clear, found)]


def _rates(a: PhaseReport, b: PhaseReport) -> Iterator[tuple[Rate, Callable[[float], bool | None]]]:
    """Rates and shares to be compared, each with the test that says at a level whether it differs."""
    label = _label(a.phase.name, b.phase.name)

    def by_batches(level: float, of_a: float, of_b: float) -> bool | None:
        if a.throughput_error is None or b.throughput_error is None or not of_a or not of_b:
            return None
        error = math.hypot(a.throughput_error, b.throughput_error)
        return abs(math.log(of_b / of_a)) > student(level, BATCHES - 1) * error

    def by_jobs(level: float, of_a: float, of_b: float) -> bool:
        return two_shares(round(of_a * a.counted), a.counted, round(of_b * b.counted), b.counted) < level

    def share(some: int, of: int) -> float | None:
        return some / of if of else None

    per_1k = [one.cost.per_1k_requests if one.cost else None for one in (a, b)]
    # In an open loop the schedule says how many are answered.
    throughputs = [one.throughput_per_s if a.phase.kind == "closed" else None for one in (a, b)]
    found: list[tuple[str, float | None, float | None, bool, Callable[..., bool | None]]] = [
        ("throughput", throughputs[0], throughputs[1], False, by_batches),
        ("output tokens/s", a.tokens_per_s, b.tokens_per_s, False, by_batches),
        ("cost per 1k requests", per_1k[0], per_1k[1], True, by_batches),
        ("error rate", share(a.failed, a.counted), share(b.failed, b.counted), True, by_jobs),
        ("goodput", a.goodput_share, b.goodput_share, False, by_jobs),
    ]
    for name, of_a, of_b, worse, test in found:
        if of_a is not None and of_b is not None:
            yield Rate(label, name, of_a, of_b, None, worse), partial(test, of_a=of_a, of_b=of_b)


def _phases(recorded: Recorded) -> dict[str, list[Job]]:
    in_order = sorted(recorded.jobs, key=lambda job: job.sent_ms or 0.0)
    return grouped((job for job in in_order if job.counts), lambda job: job.phase)


def _values(jobs: Sequence[Job], metric: str) -> list[float]:
    read = METRICS[metric]
    return [value for job in jobs if job.ok and (value := read(job)) is not None]


def act(options: CompareOptions, environment: Environment) -> Exit:
    if is_quality(options):
        return compare_quality(options, make_console(plain=environment.plain))
    a, b = run_files.read(Path(options.a)), run_files.read(Path(options.b))
    found = compare(a, b, parse_percentiles(options.percentiles))
    if not found.lines:
        raise UsageError(
            f"{options.a} and {options.b} have no phase in common: {', '.join(_phases(a))} and {', '.join(_phases(b))}"
        )
    limit = options.fail_on_slower
    slower = [
        one
        for one in found.differences
        if limit is not None and one.metric == "total" and one.low_ms is not None and one.low_ms > limit * one.a_ms
    ]
    if options.format == "json":
        rows = [{**asdict(one), "share": one.share} for one in found.differences]
        rates = [asdict(one) for one in found.rates]
        both = [_error_rate(a), _error_rate(b)]
        sys.stdout.write(json.dumps({"differences": rows, "rates": rates, "error_rate": both}, indent=1) + "\n")
    else:
        console = make_console(plain=environment.plain)
        _show(found, options, console)
        for one in slower:
            console.print(f"✗ {one.phase} total p{one.p:g} is certainly more than {limit:.0%} slower", style="bold red")
    return Exit.SLO_FAILED if slower else Exit.PASS


def _error_rate(recorded: Recorded) -> float | None:
    counted = [job for job in recorded.jobs if job.counts]
    return sum(1 for job in counted if not job.ok) / len(counted) if counted else None


def _show(found: Comparison, options: CompareOptions, console: Console) -> None:
    heads = ("phase", "metric", "", "A", "B", "B - A", "95% interval", "", "finds", "n")
    table = plain_table(*heads, left=("phase", "metric"))
    for one in found.differences:
        share = f" ({one.share:+.1%})" if one.share is not None else ""
        table.add_row(
            one.phase,
            one.metric,
            f"p{one.p:g}",
            show_ms(one.a_ms),
            show_ms(one.b_ms),
            f"{'+' if one.b_ms >= one.a_ms else ''}{show_ms(one.b_ms - one.a_ms)}{share}",
            f"{show_ms(one.low_ms)} to {show_ms(one.high_ms)}" if one.low_ms is not None else "n/a",
            _word(one.clear, worse=one.b_ms > one.a_ms, bad="slower", good="faster"),
            f"±{one.detectable:.0%}" if one.detectable is not None else "",
            f"{one.n_a}, {one.n_b}",
        )
    for rate in found.rates:
        text = SHOW.get(rate.name, show_share)
        share = f"{rate.b / rate.a - 1:+.1%}" if rate.a else ""
        worse = (rate.b > rate.a) == rate.worse
        word = _word(rate.clear, worse=worse, bad="worse", good="better")
        table.add_row(rate.phase, rate.name, "", text(rate.a), text(rate.b), share, "", word, "", "")
    console.print(f"A {options.a}\nB {options.b}", style="dim")
    console.print(table)
    console.print(
        f"a word of difference is wrong in at most 5 % of comparisons of equal runs, all {found.lines} lines together; "
        "finds: the difference that would be found in 4 of 5 such pairs",
        style="dim",
    )


def _word(clear: bool | None, *, worse: bool, bad: str, good: str) -> Text:
    if clear is None:
        return Text("unknown: too few jobs", style="dim")
    if not clear:
        return Text("no clear difference", style="dim")
    return Text(bad if worse else good, style="red" if worse else "green")
