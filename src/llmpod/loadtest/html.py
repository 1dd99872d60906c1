"""report.html: one file that opens anywhere, without a network, a script or a font of its own."""

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from llmpod.loadtest.analysis import PhaseReport
from llmpod.loadtest.classify import WARNINGS
from llmpod.loadtest.console import HEADLINES
from llmpod.loadtest.errors import DirectoryError, Exit
from llmpod.loadtest.measures import MEANING, METRICS, Row
from llmpod.loadtest.records import Job
from llmpod.loadtest.report import METHODS, Report
from llmpod.loadtest.stats import Quantile, nearest_rank
from llmpod.loadtest.svg import Series, legend, plot, stack
from llmpod.loadtest.units import count, show_duration, show_ms, show_rate, show_share, show_usd

MOST_DOTS = 3000
CURVE = (50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 98.0, 99.0, 99.5, 99.9, 99.95, 99.99)
TONE = {Exit.PASS: "pass", Exit.INVALID: "warn", Exit.INTERRUPTED: "warn"}


def write_html(path: Path, report: Report, jobs: Sequence[Job]) -> None:
    """Raises DirectoryError when the file cannot be written."""
    try:
        path.write_text(page(report, jobs), encoding="utf-8")
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
    words, _ = HEADLINES.get(report.exit_code, ("", ""))
    if report.exit_code is Exit.PASS and not any(phase.verdicts for phase in report.phases):
        words = "Done; no objectives were given"
    out = [
        f'<section class="card banner {TONE.get(report.exit_code, "fail")}"><strong '
        f'id="verdict">{escape(words)}</strong>'
    ]
    out.append(f' <span class="dim">exit code {int(report.exit_code)}</span>')
    if report.stopped:
        out.append(f'<p class="warn">Stopped: {escape(report.stopped)}</p>')
    if report.notes:
        out.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    return "".join(out) + "</section>"


def _overview(report: Report) -> str:
    if len(report.phases) < 2:
        return ""
    rows = []
    for phase in report.phases:
        total = phase.rows.get("total")
        cells = [_ms(total, 50), _ms(total, 95), _ms(phase.rows.get("delay"), 50), _ms(phase.rows.get("exec"), 50)]
        failed = f'<span class="{"bad" if phase.failed else "dim"}">{phase.failed}</span>'
        cells = [str(phase.counted), failed, escape(show_rate(phase.throughput_per_s)), *cells]
        valid = '<span class="good">yes</span>' if phase.valid else '<span class="warn">no</span>'
        rows.append(
            f"<tr><td>{escape(phase.phase.name)}</td>"
            + "".join(f'<td class="r">{cell}</td>' for cell in [*cells, valid])
            + "</tr>"
        )
    heads = ("jobs", "failed", "done", "total p50", "p95", "delay p50", "exec p50", "valid")
    head = "<tr><th>phase</th>" + "".join(f'<th class="r">{name}</th>' for name in heads) + "</tr>"
    return (
        f'<section class="card"><h2>Phases</h2><div class="scroll"><table>{head}{"".join(rows)}</table></div></section>'
    )


def _ms(row: Row | None, p: float) -> str:
    found = row.at(p) if row else None
    return escape(show_ms(found.value)) if found else ""


def _phase(phase: PhaseReport, jobs: Sequence[Job]) -> str:
    left_out = ", ".join(f"{count} {name}" for name, count in phase.excluded.items() if count) or "none"
    out = [
        f'<section class="card phase"><h2>{escape(phase.phase.name)}</h2>',
        f'<span class="dim">{phase.phase.shape}, {show_duration(phase.window_s)} measured; not counted: '
        f"{escape(left_out)}</span>",
        f'<p class="why">{escape(phase.why)}</p>',
        _numbers(phase),
        _doubts(phase),
        _verdicts(phase),
        _latencies(phase),
        _where(phase),
        _over_time(phase, jobs),
        _curve(phase, jobs),
        _workers(phase),
        _slices(phase),
        _failures(phase),
    ]
    return "\n".join(part for part in out if part) + "</section>"


def _numbers(phase: PhaseReport) -> str:
    pairs = [("jobs", f"{phase.counted}"), ("failed", f"{phase.failed}"), ("done", show_rate(phase.throughput_per_s))]
    if phase.requested_per_s is not None:
        pairs.append(("sent of asked", f"{show_rate(phase.achieved_per_s)} of {show_rate(phase.requested_per_s)}"))
    if phase.tokens_per_s:
        pairs.append(("output tokens", f"{phase.tokens_per_s:.1f}/s"))
    if phase.goodput_share is not None:
        pairs.append(("goodput", f"{show_share(phase.goodput_share)}, {show_rate(phase.goodput_per_s)}"))
    if phase.cost is not None:
        pairs += [
            (
                "cost, busy to all worker time",
                f"{show_usd(phase.cost.busy_usd)} to {show_usd(phase.cost.workers_usd)}",
            ),
            ("per 1k requests", show_usd(phase.cost.per_1k_requests)),
            ("per 1k output tokens", show_usd(phase.cost.per_1k_tokens)),
        ]
    return (
        '<div class="numbers">'
        + "".join(f'<div class="dim">{escape(k)}<b>{escape(v)}</b></div>' for k, v in pairs)
        + "</div>"
    )


def _doubts(phase: PhaseReport) -> str:
    facts = []
    if "loop_lag_p99_ms" in phase.client:
        facts.append(f"client loop lag p99 {show_ms(phase.client['loop_lag_p99_ms'])}")
    if phase.little is not None:
        facts.append(f"Little's law {phase.little.ratio * phase.little.clients:.2f} of {phase.little.clients} clients")
    if phase.poll_overshoot_ms:
        facts.append(f"polling corrected by {show_ms(phase.poll_overshoot_ms)} on average")
    mark = '<span class="warn">✗ not valid</span>'
    if phase.valid:
        mark = '<span class="good">✓ valid</span>' if phase.ok else '<span class="dim">nothing to judge</span>'
    lines = "".join(f'<li class="warn">{escape(doubt.text)}</li>' for doubt in phase.doubts)
    lines += "".join(
        f'<li class="warn">{count} × {escape(name)}: {escape(WARNINGS[name])}</li>'
        for name, count in phase.warnings.items()
    )
    return f'<p>{mark} <span class="dim">{escape(", ".join(facts))}</span></p>' + (f"<ul>{lines}</ul>" if lines else "")


def _verdicts(phase: PhaseReport) -> str:
    if not phase.verdicts:
        return ""
    rows = []
    for verdict in phase.verdicts:
        mark = '<span class="good">✓ met</span>' if verdict.passed else '<span class="bad">✗ missed</span>'
        unsure = f"<small>{escape(verdict.unsure)}</small>" if verdict.unsure else ""
        rows.append(
            f"<tr><td>{escape(verdict.slo.text)}</td><td>{escape(verdict.shown)}{unsure}</td><td>{mark}</td></tr>"
        )
    return f"<h3>Objectives</h3><table><tr><th>objective</th><th>measured</th><th></th></tr>{''.join(rows)}</table>"


def _latencies(phase: PhaseReport) -> str:
    if not phase.rows:
        return ""
    first = next(iter(phase.rows.values()))
    ps = [found.p for found in first.quantiles]
    heads = "".join(f'<th class="r">p{p:g}</th>' for p in ps)
    rows = []
    for name, row in phase.rows.items():
        cells = "".join(f'<td class="r">{_cell(row.at(p))}</td>' for p in ps)
        size = f"{row.n}" + (f"<small>n_eff {row.n_eff:.0f}</small>" if row.n_eff < 0.9 * row.n else "")
        mean = escape(show_ms(row.mean_ms))
        rows.append(
            f'<tr><td>{name}<small>{escape(MEANING[name])}</small></td>{cells}<td class="r">{mean}</td><td '
            f'class="r">{size}</td></tr>'
        )
        if phase.failed and row.adjusted is not None:
            cells = "".join(f'<td class="r">{escape(show_ms(row.adjusted[f"p{p:g}"]))}</td>' for p in ps)
            rows.append(
                f"<tr><td>{name}<small>failed jobs counted as infinitely "
                f"slow</small></td>{cells}<td></td><td></td></tr>"
            )
    head = f'<tr><th>latency</th>{heads}<th class="r">mean</th><th class="r">n</th></tr>'
    return f'<h3>Latency, with 95 % intervals</h3><div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _cell(found: Quantile | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        size = f"n={found.n}" if found.n_eff > 0.9 * found.n else f"n_eff={found.n_eff:.0f}"
        return f"{escape(show_ms(found.value))}<small>n/a ({size}, need {found.needed_n})</small>"
    return f"{escape(show_ms(found.value))}<small>{escape(show_ms(found.low))} to {escape(show_ms(found.high))}</small>"


def _where(phase: PhaseReport) -> str:
    rows = [
        (
            share.label,
            [
                ("wait", share.wait_ms),
                ("delay", share.delay_ms),
                ("exec", share.exec_ms),
                ("overhead", share.overhead_ms),
            ],
        )
        for share in phase.shares
    ]
    drawn = stack(rows, show_ms)
    names = legend([("client wait", "wait"), ("queue", "delay"), ("execution", "exec"), ("overhead", "overhead")])
    return f"<h3>Where the time went</h3>{drawn}{names}" if drawn else ""


def thin(points: list[tuple[float, float | None]], most: int = MOST_DOTS) -> list[tuple[float, float | None]]:
    """At most `most` points; of each bundle that is left out, the highest stays, so no outlier disappears."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    ordered = sorted(points)
    return [max(ordered[at : at + size], key=lambda one: one[1] or 0.0) for at in range(0, len(ordered), size)]


def _over_time(phase: PhaseReport, jobs: Sequence[Job]) -> str:
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
    ok = [job for job in jobs if job.counts and job.ok]
    series = []
    for label, css in (("total", "total"), ("delay", "delay"), ("exec", "exec"), ("scheduled", "wait")):
        read = METRICS[label]
        values = sorted(value for job in ok if (value := read(job)) is not None)
        if len(values) < 2:
            continue
        reach = [p for p in CURVE if p <= 100 * (1 - 1 / len(values)) or p == 50.0]
        points: list[tuple[float, float | None]] = [(_nines(p), nearest_rank(values, p)) for p in reach]
        series.append(Series(label, css, "line", points))
    ticks = {_nines(p): f"p{p:g}" for p in (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)}
    drawn = plot(
        series, title="latency by percentile", x_text=lambda x: ticks.get(x, ""), y_text=axis_ms, x_ticks=list(ticks)
    )
    return f"<h3>Latency by percentile</h3>{drawn}" if drawn else ""


def _nines(p: float) -> float:
    return -math.log10(1 - p / 100)


def _workers(phase: PhaseReport) -> str:
    out = ""
    if phase.health is not None and len(phase.health.points) > 1:
        points = phase.health.points
        seconds = [(point.t_ms - phase.window_start_ms) / 1000 for point in points]
        # The last count holds to the end of the window.
        points, seconds = (*points, points[-1]), [*seconds, max(seconds[-1], phase.window_s)]
        series = [
            Series(
                "queued jobs",
                "delay",
                "steps",
                [(x, float(point.queued)) for x, point in zip(seconds, points, strict=True)],
            ),
            Series(
                "workers wanted",
                "wait",
                "steps",
                [(x, float(point.wanted)) for x, point in zip(seconds, points, strict=True)],
            ),
            Series(
                "workers live",
                "exec",
                "steps",
                [(x, float(point.live)) for x, point in zip(seconds, points, strict=True)],
            ),
        ]
        pairs = zip(seconds, [*seconds[1:], phase.window_s], points, strict=True)
        shaded = [(x, after) for x, after, point in pairs if point.throttled]
        drawn = plot(series, title="workers", x_text=show_seconds, y_text=axis_count, shaded=shaded)
        health = phase.health
        each = health.assumed_per_worker
        assumed = f"; wanted assumes {count(each, 'job')} per worker" if each else ""
        out += (
            f"<h3>Workers and queue, from /health</h3>{drawn}<p class='dim'>short of workers for "
            f"{show_duration(health.short_s)} of "
            f"{show_duration(health.span_s)}, throttled for {show_duration(health.throttled_s)} (shaded){assumed}</p>"
        )
    if phase.workers:
        rows = "".join(
            f"<tr><td>{escape(one.worker_id)}{' <span class=warn>slow</span>' if one.slow else ''}</td>"
            + "".join(
                f'<td class="r">{cell}</td>'
                for cell in (one.jobs, one.failed, show_ms(one.exec_p50_ms), show_ms(one.exec_p95_ms), one.at_once)
            )
            + "</tr>"
            for one in phase.workers[:50]
        )
        heads = "".join(f'<th class="r">{name}</th>' for name in ("jobs", "failed", "exec p50", "exec p95", "at once"))
        out += f'<h3>Workers</h3><div class="scroll"><table><tr><th>worker</th>{heads}</tr>{rows}</table></div>'
    classes = [one for one in phase.classes if one.n]
    if any(one.name != "warm" for one in classes):
        words = "; ".join(f"{one.n} {one.name}, delay p50 {show_ms(one.delay_p50_ms)}" for one in classes)
        out += f"<p>Starts: {escape(words)}</p>"
    if len(phase.strata) > 1:
        words = "; ".join(
            f"{one.workers} live: p50 {show_ms(one.p50_ms)}, p95 {show_ms(one.p95_ms)}, n={one.n}"
            for one in phase.strata
        )
        out += f"<p>By workers live at sending: {escape(words)}</p>"
    return out


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


def _failures(phase: PhaseReport) -> str:
    if not phase.failures:
        return ""
    rows = "".join(
        f'<tr><td class="bad">{escape(one.error_class)}<small>{escape(one.meaning)}</small></td><td '
        f'class="r">{one.n}</td>'
        f"<td><code>{escape(one.example)}{escape(f' [{one.job_id}]') if one.job_id else ''}</code></td></tr>"
        for one in phase.failures
    )
    return f'<h3>Failures</h3><table><tr><th>class</th><th class="r">n</th><th>for example</th></tr>{rows}</table>'


def _methods(report: Report) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in METHODS.items())
    meta = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in report.meta.items()
    )
    return (
        f'<section class="card"><h2>How this was '
        f"measured</h2><table>{rows}</table><details><summary>Run</summary><table>{meta}</table></details></section>"
    )


def show_seconds(seconds: float) -> str:
    return show_duration(seconds) if seconds >= 0 else f"-{show_duration(-seconds)}"


def axis_count(number: float) -> str:
    return f"{number:g}" if number == int(number) else ""  # there is no half a worker


def axis_ms(ms: float) -> str:
    return "0" if ms == 0 else show_ms(ms)
