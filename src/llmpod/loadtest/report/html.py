"""Report page (report.html): one file without scripts, fonts or addresses of other places."""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from llmpod.loadtest.analysis.analyse import Bin, PhaseReport
from llmpod.loadtest.analysis.latency import METRICS
from llmpod.loadtest.errors import DirectoryError
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.report import view
from llmpod.loadtest.report.report import METHODS, Report
from llmpod.loadtest.report.svg import Series, legend, plot, stack
from llmpod.loadtest.stats import CONFIDENCE, nearest_rank
from llmpod.loadtest.units import show_duration, show_ms, show_rate

MOST_DOTS = 3000
CURVE = (50.0, *(100 - 100 * 10 ** -(number / 50) for number in range(16, 201)))
"""Percentiles from 50 to 99.99, equally far apart on the logarithmic axis."""
PARTS = {
    "wait": "client wait",
    "bad": "refused and sent again",
    "delay": "queue",
    "exec": "execution",
    "overhead": "overhead",
}
BANNER = {"good": "pass", "warn": "warn", "bad": "fail", "": "fail"}


def write_html(path: Path, report: Report, jobs: Sequence[Job]) -> None:
    """Raises DirectoryError when the file cannot be written."""
    try:
        path.write_text(page(report, jobs), encoding="utf-8", errors="replace")
    except OSError as error:
        raise DirectoryError(f"cannot write {path}: {error.strerror or error}") from None


def page(report: Report, jobs: Sequence[Job]) -> str:
    by_phase: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_phase[job.phase].append(job)
    body = [_banner(report), _overview(report)]
    body += [_phase(phase, by_phase[phase.phase.name]) for phase in report.phases]
    body.append(_methods(report))
    template = Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title="Load test report",
        subtitle=escape(" · ".join(report.header)),
        body="\n".join(body),
    )


def _banner(report: Report) -> str:
    words, tone = view.headline(report)
    out = [f'<section class="card banner {BANNER[tone]}"><strong id="verdict">{escape(words)}</strong>']
    out.append(f' <span class="dim code">exit code {int(report.exit_code)}</span>')
    if report.answer is not None:
        out.append(f'<p class="why">{escape(report.answer.text)}</p>')
    if report.stopped:
        out.append(f'<p class="warn">Stopped: {escape(report.stopped)}</p>')
    if report.notes:
        out.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    return "".join(out) + "</section>"


def _overview(report: Report) -> str:
    table = view.phases(report)
    return f'<section class="card"><h2>Phases</h2>{_table(table, titled=False)}</section>' if table else ""


def _table(table: view.Table | None, *, titled: bool = True) -> str:
    if table is None:
        return ""
    heads = "".join(f"<th{_side(head, table)}>{escape(head)}</th>" for head in table.heads)
    rows = "".join(
        "<tr>"
        + "".join(f"<td{_side(head, table)}>{_cell(cell)}</td>" for head, cell in zip(table.heads, row, strict=False))
        + "</tr>"
        for row in table.rows
    )
    title = f"<h3>{escape(table.title)}</h3>" if titled else ""
    return f'{title}<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>'


def _side(head: str, table: view.Table) -> str:
    return "" if head in table.left else ' class="r"'


def _cell(cell: view.Cell) -> str:
    text = f'<span class="{cell.tone}">{escape(cell.text)}</span>' if cell.tone else escape(cell.text)
    return text + (f"<small>{escape(cell.small)}</small>" if cell.small else "")


def _phase(phase: PhaseReport, jobs: Sequence[Job]) -> str:
    out = [
        f'<section class="card phase"><h2>{escape(phase.phase.name)}</h2>',
        f'<span class="dim">{phase.phase.shape}, {show_duration(phase.window_s)} measured; not counted: '
        f"{escape(view.left_out(phase))}</span>",
        f'<p class="why">{escape(phase.why)}</p>',
        _numbers(phase),
        _status(phase),
        _table(view.verdicts(phase)),
        _table(view.latencies(phase)),
        _table(view.spreads(phase)),
        _where(phase),
        _dots(phase, jobs),
        _over_time(phase),
        _curve(phase, jobs),
        _workers(phase),
        _table(view.prompts(phase)),
        _slices(phase),
        _table(view.failures(phase)),
    ]
    return "\n".join(part for part in out if part) + "</section>"


def _numbers(phase: PhaseReport) -> str:
    pairs = [
        ("jobs counted", f"{phase.counted}"),
        ("jobs failed", f"{phase.failed}"),
        ("throughput (jobs per second or minute)", show_rate(phase.throughput_per_s)),
    ]
    total = phase.rows.get("total")
    if total is not None and (p50 := total.at(50.0)) is not None:
        pairs.append(("total, p50 (time)", show_ms(p50.value)))
    if phase.tokens_per_s:
        pairs.append(("output tokens per second", f"{phase.tokens_per_s:.1f}"))
    tiles = "".join(f'<div class="dim">{escape(k)}<b>{escape(v)}</b></div>' for k, v in pairs)
    facts = "".join(f"<li><b>{escape(label)}</b>: {escape(words)}</li>" for label, words in view.facts(phase))
    return f'<div class="numbers">{tiles}</div>' + (f"<ul>{facts}</ul>" if facts else "")


def _status(phase: PhaseReport) -> str:
    status = view.status(phase)
    lines = "".join(f'<li class="warn">{escape(words)}</li>' for words, _ in status.doubts)
    facts = escape(", ".join(status.facts))
    return f'<p>{_cell(status.valid)} <span class="dim">{facts}</span></p>' + (f"<ul>{lines}</ul>" if lines else "")


def _where(phase: PhaseReport) -> str:
    rows = [
        (
            share.label,
            [
                ("wait", share.wait_ms),
                ("bad", share.retry_ms),
                ("delay", share.delay_ms),
                ("exec", share.exec_ms),
                ("overhead", share.overhead_ms),
            ],
        )
        for share in phase.shares
    ]
    drawn = stack(rows, show_ms)
    top = max((sum(max(0.0, value) for _, value in parts) for _, parts in rows), default=0.0)
    seen = {css for _, parts in rows for css, value in parts if value > top / 1000}  # wide enough to be seen
    names = legend([(PARTS[css], css) for css in PARTS if css in seen])
    return f"<h3>Where the time went</h3>{drawn}{names}" if drawn else ""


def thin(points: list[tuple[float, float | None]], most: int = MOST_DOTS) -> list[tuple[float, float | None]]:
    """At most `most` points; of each bundle that is left out, the highest stays, so no outlier disappears."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    ordered = sorted(points)
    return [max(ordered[at : at + size], key=lambda one: one[1] or 0.0) for at in range(0, len(ordered), size)]


def _dots(phase: PhaseReport, jobs: Sequence[Job]) -> str:
    groups: dict[str, list[tuple[float, float | None]]] = {"counted": [], "failed": [], "not counted": []}
    for job in jobs:
        if job.sent_ms is not None and job.total_ms is not None:
            group = "not counted" if not job.counts else "counted" if job.ok else "failed"
            groups[group].append(((job.sent_ms - phase.window_start_ms) / 1000, job.total_ms))
    series = [
        Series("not counted (warm-up, cool-down)", "dim", "dots", thin(groups["not counted"], 800)),
        Series("total", "total", "dots", thin(groups["counted"])),
        Series("failed", "bad", "dots", thin(groups["failed"])),
    ]
    limits = [(v.slo.limit, v.slo.text) for v in phase.verdicts if v.slo.name == "total"]
    top = max((y or 0.0 for one in series for _, y in one.points), default=0.0)
    marks = [mark for mark in limits if mark[0] < 4 * top]
    drawn = plot(
        [s for s in series if s.points],
        title="total by time of sending",
        x_text=show_seconds,
        y_text=axis_ms,
        marks=marks,
    )
    return f"<h3>Total, by when the job was sent</h3>{drawn}" if drawn else ""


def _curve(phase: PhaseReport, jobs: Sequence[Job]) -> str:
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
    return f'<h3>Latency by percentile</h3>{drawn}<p class="dim">{note}</p>' if ok else ""


def _nines(p: float) -> float:
    return -math.log10(1 - p / 100)


def _workers(phase: PhaseReport) -> str:
    out = ""
    if phase.health is not None and len(phase.health.points) > 1:
        points = phase.health.points
        seconds = [(point.t_ms - phase.window_start_ms) / 1000 for point in points]
        # The last count holds to the end of the window.
        points, seconds = (*points, points[-1]), [*seconds, max(seconds[-1], phase.window_s)]

        def steps(label: str, css: str, values: list[int]) -> Series:
            return Series(label, css, "steps", list(zip(seconds, map(float, values), strict=True)))

        workers = [
            steps("workers live", "exec", [point.live for point in points]),
            steps("workers wanted", "wait", [point.wanted for point in points]),
        ]
        queue = [steps("queued jobs", "delay", [point.queued for point in points])]
        pairs = zip(seconds, [*seconds[1:], phase.window_s], points, strict=True)
        shaded = [(x, after) for x, after, point in pairs if point.throttled]
        note = "<p class='dim'>shaded: with a throttled worker</p>" if shaded else ""
        out += "<h3>Workers, from /health</h3>"
        out += plot(workers, title="workers", x_text=show_seconds, y_text=axis_count, shaded=shaded, whole=True) + note
        out += "<h3>Queued jobs, from /health</h3>"
        out += plot(queue, title="queued jobs", x_text=show_seconds, y_text=axis_count, whole=True)
    return out + _table(view.workers(phase))


def _over_time(phase: PhaseReport) -> str:
    """Throughput and failures per second, and jobs in flight, each on axes of its own."""
    bins = phase.over_time
    # A rate over a short rest of the window would be mostly chance.
    bins = bins[:-1] if bins and bins[-1].width_s < bins[0].width_s / 2 else bins
    if len(bins) < 3:
        return ""

    def steps(label: str, css: str, values: list[float]) -> Series:
        ends = [one.start_s for one in bins] + [bins[-1].start_s + bins[-1].width_s]
        return Series(label, css, "steps", list(zip(ends, [*values, values[-1]], strict=True)))

    def per_s(count: int, one: Bin) -> float:
        return count / one.width_s if one.width_s > 0 else 0.0

    rates = [steps("done per second", "exec", [per_s(one.done, one) for one in bins])]
    if any(one.failed for one in bins):
        rates.append(steps("failed per second", "bad", [per_s(one.failed, one) for one in bins]))
    flight = [steps("jobs in flight", "total", [one.in_flight for one in bins])]
    width = show_duration(bins[0].width_s)
    return (
        f"<h3>Throughput, in stretches of {width}</h3>"
        + plot(rates, title="throughput over time", x_text=show_seconds, y_text=lambda y: f"{y:g}/s")
        + "<h3>Jobs in flight</h3>"
        + plot(flight, title="jobs in flight over time", x_text=show_seconds, y_text=lambda y: f"{y:g}")
    )


def _slices(phase: PhaseReport) -> str:
    if len(phase.slices) < 3:
        return ""
    series = [
        Series("p95", "delay", "steps", [(one.start_s, one.p95_ms) for one in phase.slices]),
        Series("p50", "total", "steps", [(one.start_s, one.p50_ms) for one in phase.slices]),
    ]
    width = show_duration(phase.slices[1].start_s - phase.slices[0].start_s)
    drawn = plot(series, title="percentiles over time", x_text=show_seconds, y_text=axis_ms)
    return f"<h3>Total over time, in slices of {width}</h3>{drawn}"


def _methods(report: Report) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in METHODS.items())
    meta = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in report.meta.items()
    )
    details = f'<details><summary>Run</summary><table class="text">{meta}</table></details>'
    return f'<section class="card"><h2>How this was measured</h2><table class="text">{rows}</table>{details}</section>'


def show_seconds(seconds: float) -> str:
    return show_duration(seconds) if seconds >= 0 else f"-{show_duration(-seconds)}"


def axis_count(number: float) -> str:
    return f"{number:g}"


def axis_ms(ms: float) -> str:
    return "0" if ms == 0 else show_ms(ms)
