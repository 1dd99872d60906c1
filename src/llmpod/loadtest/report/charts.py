"""Figures of a phase: where the time went, and its latencies, throughput, workers and queue over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmpod.loadtest.analysis.latency import METRICS
from llmpod.loadtest.analysis.phase import PhaseReport
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.report.svg import Bar, Plot, Series, plot, stack
from llmpod.loadtest.stats import CONFIDENCE, nearest_rank
from llmpod.loadtest.units import show_duration, show_ms

MOST_DOTS = 3000
CURVE = (50.0, *(100 - 100 * 10 ** -(number / 50) for number in range(16, 201)))
"""Percentiles from 50 to 99.99, equally far apart on the logarithmic axis."""
PARTS = {
    "wait": ("wait", "client wait"),
    "retries": ("bad", "refused and sent again"),
    "delay": ("delay", "queue"),
    "exec": ("exec", "execution"),
    "overhead": ("overhead", "overhead"),
}
"""Of each part of a job's time the CSS class and the name in the legend."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled figure: a plot, or bars with the names of their parts."""

    title: str
    plot: Plot | None = None
    note: str = ""
    bars: list[Bar] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)


def charts(phase: PhaseReport, jobs: Sequence[Job]) -> list[Chart]:
    made = [_where(phase), _dots(phase, jobs), *_over_time(phase), _curve(phase, jobs), *_health(phase), _slices(phase)]
    return [chart for chart in made if chart is not None and (chart.plot or chart.bars or chart.note)]


def _where(phase: PhaseReport) -> Chart:
    rows = [(share.label, {PARTS[part][0]: ms for part, ms in share.parts.items()}) for share in phase.shares]
    bars = stack(rows, show_ms)
    wide = {css for bar in bars for css, _, width, _ in bar.parts if width > 0.5}  # wide enough to be seen
    return Chart("Where the time went", bars=bars, names=[(css, name) for css, name in PARTS.values() if css in wide])


def thin(points: list[tuple[float, float | None]], most: int = MOST_DOTS) -> list[tuple[float, float | None]]:
    """At most `most` points; of each bundle that is left out, the highest stays, so no outlier disappears."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    ordered = sorted(points)
    return [max(ordered[at : at + size], key=lambda one: one[1] or 0.0) for at in range(0, len(ordered), size)]


def _dots(phase: PhaseReport, jobs: Sequence[Job]) -> Chart:
    groups: dict[str, list[tuple[float, float | None]]] = {"counted": [], "failed": [], "not counted": []}
    for job in jobs:
        if job.sent_ms is not None and job.total_ms is not None:
            group = "not counted" if not job.counts else "counted" if job.ok else "failed"
            groups[group].append(((job.sent_ms - phase.window_start_ms) / 1000, job.total_ms))
    series = [
        Series("not counted (warm-up, cool-down)", "dim", "ticks", thin(groups["not counted"], 800)),
        Series("total", "total", "dots", thin(groups["counted"])),
        Series("failed", "bad", "crosses", thin(groups["failed"])),
    ]
    top = max((y for one in series for _, y in one.known), default=0.0)
    limits = [(v.slo.limit, v.slo.text) for v in phase.verdicts if v.slo.name == "total" and v.slo.limit < 4 * top]
    drawn = plot(series, title="total by time of sending", x_text=seconds, y_text=axis_ms, limits=limits)
    return Chart("Total, by when the job was sent", drawn)


def _curve(phase: PhaseReport, jobs: Sequence[Job]) -> Chart | None:
    """Empirical quantile function from p50 to the highest percentile whose 95 % interval is known."""
    ok = [job for job in jobs if job.counts and job.ok]
    series, short = [], []
    for label, css in (("total", "total"), ("delay", "delay"), ("exec", "exec"), ("scheduled", "wait")):
        read, row = METRICS[label], phase.rows.get(label)
        values = sorted(value for job in ok if (value := read(job)) is not None)
        if row is None or not values:
            continue
        unknown = min((found.p for found in row.quantiles if found.p >= 50 and found.low is None), default=100.0)
        reach = [p for p in CURVE if p < unknown and 1 - (p / 100) ** int(row.n_eff) >= CONFIDENCE]
        points: list[tuple[float, float | None]] = []
        for p in reach:
            point = (_nines(p), nearest_rank(values, p))
            if len(points) > 1 and points[-2][1] == points[-1][1] == point[1]:
                points.pop()  # the same step goes on
            points.append(point)
        if len(points) > 1:
            series.append(Series(label, css, "steps", points))
            short.append(f"{label} p{math.floor(10 * reach[-1]) / 10:g}")
    ticks = {_nines(p): f"p{p:g}" for p in (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)}
    drawn = plot(
        series,
        title="latency by percentile",
        x_text=lambda x: ticks.get(x, ""),
        y_text=axis_ms,
        x_ticks=list(ticks),
        x_name="percentile of the jobs (logarithmic: p90, p99 and p99.9 are equally far apart)",
    )
    note = f"Drawn as far as a 95 % interval is known: {', '.join(short)}."
    if not drawn:
        note = "Not drawn: no percentile of these jobs has a 95 % interval."
    return Chart("Latency by percentile", drawn, note) if ok else None


def _nines(p: float) -> float:
    return -math.log10(1 - p / 100)


def _health(phase: PhaseReport) -> list[Chart]:
    if phase.health is None or len(phase.health.points) < 2:
        return []
    points = phase.health.points
    at_s = [(point.t_ms - phase.window_start_ms) / 1000 for point in points]
    # The last count holds to the end of the window.
    points, at_s = (*points, points[-1]), [*at_s, max(at_s[-1], phase.window_s)]
    workers = [
        _stairs("workers live", "exec", at_s, [point.live for point in points]),
        _stairs("workers wanted", "wait", at_s, [point.wanted for point in points]),
    ]
    queue = [_stairs("queued jobs", "delay", at_s, [point.queued for point in points])]
    pairs = zip(at_s, [*at_s[1:], phase.window_s], points, strict=True)
    shaded = [(x, after) for x, after, point in pairs if point.throttled]
    note = "shaded: with a throttled worker" if shaded else ""
    how: dict[str, Any] = {"x_text": seconds, "y_text": axis_number, "whole": True}
    return [
        Chart("Workers, from /health", plot(workers, title="workers", shaded=shaded, **how), note),
        Chart("Queued jobs, from /health", plot(queue, title="queued jobs", **how)),
    ]


def _stairs(label: str, css: str, at_s: Sequence[float], values: Sequence[float]) -> Series:
    return Series(label, css, "steps", list(zip(at_s, map(float, values), strict=True)))


def _over_time(phase: PhaseReport) -> list[Chart]:
    """Throughput and failures per second, and jobs in flight, each on axes of its own."""
    bins = phase.over_time
    # A rate over a short rest of the window would be mostly chance.
    bins = bins[:-1] if bins and bins[-1].width_s < bins[0].width_s / 2 else bins
    if len(bins) < 3:
        return []
    edges = [one.start_s for one in bins] + [bins[-1].start_s + bins[-1].width_s]

    def stairs(label: str, css: str, values: list[float]) -> Series:
        return _stairs(label, css, edges, [*values, values[-1]])

    def rates(counts: list[int]) -> list[float]:
        return [count / one.width_s if one.width_s > 0 else 0.0 for count, one in zip(counts, bins, strict=True)]

    series = [stairs("done per second", "exec", rates([one.done for one in bins]))]
    if any(one.failed for one in bins):
        series.append(stairs("failed per second", "bad", rates([one.failed for one in bins])))
    flight = [stairs("jobs in flight", "total", [one.in_flight for one in bins])]
    rate = plot(series, title="throughput over time", x_text=seconds, y_text=lambda y: f"{y:g}/s")
    flying = plot(flight, title="jobs in flight over time", x_text=seconds, y_text=axis_number)
    title = f"Throughput, in stretches of {show_duration(bins[0].width_s)}"
    return [Chart(title, rate), Chart("Jobs in flight", flying)]


def _slices(phase: PhaseReport) -> Chart | None:
    if len(phase.slices) < 3:
        return None
    series = [
        Series("p95", "delay", "steps", [(one.start_s, one.p95_ms) for one in phase.slices]),
        Series("p50", "total", "steps", [(one.start_s, one.p50_ms) for one in phase.slices]),
    ]
    width = show_duration(phase.slices[1].start_s - phase.slices[0].start_s)
    drawn = plot(series, title="percentiles over time", x_text=seconds, y_text=axis_ms)
    return Chart(f"Total over time, in slices of {width}", drawn)


def seconds(value: float) -> str:
    return show_duration(value) if value >= 0 else f"-{show_duration(-value)}"


def axis_number(number: float) -> str:
    return f"{number:g}"


def axis_ms(ms: float) -> str:
    return "0" if ms == 0 else show_ms(ms)
