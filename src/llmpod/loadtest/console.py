"""The report in a terminal: one glance for pass or fail, then the numbers, then why."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmpod.loadtest.analysis import PhaseReport
from llmpod.loadtest.classify import WARNINGS
from llmpod.loadtest.errors import Exit
from llmpod.loadtest.measures import Row
from llmpod.loadtest.report import Report
from llmpod.loadtest.stats import Quantile
from llmpod.loadtest.units import count, show_duration, show_ms, show_rate, show_share, show_usd

BARS = "▁▂▃▄▅▆▇█"
_GAP = Text("")
# Below this width each interval stands under its percentile; where there is no terminal, lines are as long as they
# need to be.
NARROW, NO_TERMINAL = 190, 200
HEADLINES = {
    Exit.PASS: ("PASS", "bold green"),
    Exit.ERROR: ("ERROR: nothing usable was measured", "bold red"),
    Exit.SLO_FAILED: ("FAIL: an objective was missed", "bold red"),
    Exit.ABORTED: ("ABORTED by a guard", "bold red"),
    Exit.INVALID: ("INVALID: the numbers are not to be believed", "bold yellow"),
    Exit.INTERRUPTED: ("INTERRUPTED: this is what was measured until then", "bold yellow"),
}


def sparkline(values: list[float | None], top: float | None = None) -> str:
    """Eight levels up to `top` (the largest value by default); lines beside each other need the same top."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top = top or max(known) or 1.0
    return "".join(" " if value is None else BARS[min(7, int(value / top * 7.999))] for value in values)


def show(report: Report, console: Console, metric: str | None = None) -> None:
    console.print()
    console.print(_header(report))
    for phase in report.phases:
        console.print()
        console.print(_phase(phase, metric, narrow=console.width < NARROW))
    console.print()
    console.print(_footer(report))


def _header(report: Report) -> RenderableType:
    text = Text()
    text.append("load test ", style="bold")
    text.append("  ".join(report.header), style="dim")
    return text


def _phase(phase: PhaseReport, metric: str | None, *, narrow: bool) -> RenderableType:
    parts: list[RenderableType] = [_title(phase), _validity(phase)]
    if phase.rows:
        parts += [_GAP, _latencies(phase, metric, narrow=narrow)]
    if phase.shares:
        parts += [_GAP, _shares(phase)]
    parts += [_GAP, *_facts(phase)]
    if phase.failures:
        parts.append(_failures(phase))
    if phase.verdicts:
        parts.append(_verdicts(phase))
    parts += [_GAP, Text.assemble(("why  ", "bold cyan"), phase.why)]
    return Group(*parts)


def _title(phase: PhaseReport) -> Text:
    text = Text()
    text.append(f"{phase.phase.name}", style="bold")
    text.append(f"  {phase.phase.shape}  {show_duration(phase.window_s)}", style="dim")
    text.append(f"  n={phase.counted}  ")
    text.append(f"ok={phase.ok}", style="green" if phase.ok else "")
    text.append("  ")
    text.append(f"failed={phase.failed}", style="bold red" if phase.failed else "dim")
    text.append(f"  {show_rate(phase.throughput_per_s)} done")
    if phase.requested_per_s is not None:
        text.append(f"  sent {show_rate(phase.achieved_per_s)} of {show_rate(phase.requested_per_s)} asked")
    left_out = [f"{count} {name}" for name, count in phase.excluded.items() if count]
    text.append(f"  not counted: {', '.join(left_out) if left_out else 'none'}", style="dim")
    return text


def _validity(phase: PhaseReport) -> Text:
    text = Text()
    fatal = [doubt for doubt in phase.doubts if doubt.fatal]
    if fatal:
        text.append("✗ not valid", style="bold yellow")
    else:
        text.append("✓ valid" if phase.ok else "nothing to judge", style="green" if phase.ok else "dim")
    client = phase.client
    facts = []
    if "loop_lag_p99_ms" in client:
        facts.append(f"client loop lag p99 {show_ms(client['loop_lag_p99_ms'])}")
    if "cpu_share" in client:
        facts.append(f"client CPU {client['cpu_share']:.0%} of a core")
    if phase.health is not None:
        low, high = phase.health.live_min, phase.health.live_max
        facts.append(f"workers {low}" if low == high else f"workers {low} to {high}")
    else:
        facts.append("workers unknown (no /health)")
    if phase.poll_overshoot_ms:
        facts.append(f"polling corrected by {show_ms(phase.poll_overshoot_ms)} on average")
    text.append(f"  {', '.join(facts)}", style="dim")
    for doubt in phase.doubts:
        text.append(f"\n  {'✗' if doubt.fatal else '!'} {doubt.text}", style="yellow")
    return text


def _latencies(phase: PhaseReport, metric: str | None, *, narrow: bool) -> Table:
    """`narrow` puts each interval below its percentile, so that the table fits 80 to 130 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("latency", no_wrap=True)
    rows = [row for name, row in phase.rows.items() if metric is None or name == metric]
    ps = [quantile.p for quantile in rows[0].quantiles] if rows else []
    for p in ps:
        table.add_column(f"p{p:g}" if narrow else f"p{p:g}  95% interval", justify="right", no_wrap=not narrow)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    if phase.failed:
        table.add_column("with failures", justify="right")
    for row in rows:
        cells = [_quantile(row, row.at(p), "\n" if narrow else "  ") for p in ps]
        size = f"{row.n}" if row.n_eff > 0.9 * row.n else f"{row.n} (n_eff {row.n_eff:.0f})"
        missing = f" -{row.missing} unknown" if row.missing else ""
        last = [_adjusted(row, phase.failed)] if phase.failed else []
        table.add_row(row.metric, *cells, show_ms(row.mean_ms), size + missing, *last)
    return table


def _quantile(row: Row, found: Quantile | None, gap: str) -> Text:
    if found is None:
        return Text("")
    if found.low is None or found.high is None:
        size = f"n={found.n}" if found.n_eff > 0.9 * found.n else f"n_eff={found.n_eff:.0f}"
        return Text.assemble(show_ms(found.value), (f"{gap}n/a ({size}, need {found.needed_n})", "dim"))
    return Text.assemble(
        (show_ms(found.value), "bold" if row.metric == "total" else ""), (f"{gap}{_interval(found)}", "dim")
    )


def _interval(found: Quantile) -> str:
    low, high = show_ms(found.low), show_ms(found.high)
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(' ' + unit)}–{high}"


def _adjusted(row: Row, failed: int) -> str:
    if row.adjusted is None or not failed:
        return ""
    return " ".join(f"{name} {show_ms(value)}" for name, value in row.adjusted.items() if name in ("p50", "p95", "p99"))


def _shares(phase: PhaseReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("where it went", "wait ·", "delay ░", "exec █", "overhead ▒", "= total"):
        table.add_column(name, justify="left" if name == "where it went" else "right")
    table.add_column("")
    for share in phase.shares:
        bar = Text()
        total = max(share.total_ms, 1e-9)
        # A character of its own for each part: the bar is read without colours, too.
        for value, mark, colour in (
            (share.wait_ms, "·", "magenta"),
            (share.delay_ms, "░", "yellow"),
            (share.exec_ms, "█", "green"),
            (share.overhead_ms, "▒", "blue"),
        ):
            bar.append(mark * round(max(0.0, value) / total * 32), style=colour)
        values = (share.wait_ms, share.delay_ms, share.exec_ms, share.overhead_ms, share.total_ms)
        table.add_row(share.label, *(show_ms(value) for value in values), bar)
    return table


def _facts(phase: PhaseReport) -> list[RenderableType]:
    lines: list[RenderableType] = []

    def say(label: str, words: str) -> None:
        lines.append(Text.assemble((f"{label}  ", "bold"), words))

    if phase.output_tokens:
        reasons = ", ".join(f"{name} {count}" for name, count in phase.finish_reasons.items())
        say(
            "tokens",
            f"{phase.output_tokens} out, {phase.tokens_per_s or 0:.1f}/s"
            + (f"; ended by {reasons}" if reasons else ""),
        )
    classes = [one for one in phase.classes if one.n]
    if classes and any(one.name != "warm" for one in classes):
        words = ", ".join(f"{one.n} {one.name} (delay p50 {show_ms(one.delay_p50_ms)})" for one in classes)
        if phase.without_cold is not None and (p95 := phase.without_cold.at(95.0)) is not None:
            words += f"; warm only: total p95 {show_ms(p95.value)}"
        say("starts", words)
    if phase.workers:
        words = "; ".join(
            f"{one.worker_id}: {count(one.jobs, 'job')}"
            + (f", exec p50 {show_ms(one.exec_p50_ms)}, p95 {show_ms(one.exec_p95_ms)}" if one.exec_p50_ms else "")
            + (f", {one.at_once} at once" if one.at_once > 1 else "")
            + (f", {one.failed} failed" if one.failed else "")
            + (" SLOW" if one.slow else "")
            for one in phase.workers[:8]
        )
        more = f"; and {len(phase.workers) - 8} more" if len(phase.workers) > 8 else ""
        even = f" (evenness {phase.jain:.2f})" if phase.jain is not None else ""
        say("workers", words + more + even)
    if len(phase.strata) > 1:
        words = ", ".join(
            f"with {one.workers}: p50 {show_ms(one.p50_ms)} p95 {show_ms(one.p95_ms)} (n={one.n})"
            for one in phase.strata
        )
        say("by live workers", words)
    if phase.health is not None and len(phase.health.points) > 1:
        health = phase.health
        step = max(1, len(health.points) // 60)
        top = float(max(max(point.live, point.wanted) for point in health.points))
        line = sparkline([float(point.live) for point in health.points[::step]], top)
        wanted = sparkline([float(point.wanted) for point in health.points[::step]], top)
        each = health.assumed_per_worker
        assumed = f" (assuming {count(each, 'job')} per worker; --scaler-value says otherwise)" if each else ""
        say("timeline", f"live {line}  wanted {wanted}{assumed}")
        say(
            "",
            f"short of workers {show_duration(health.short_s)}, throttled "
            f"{show_duration(health.throttled_s)}, queue at most {health.queued_max}",
        )
    if phase.little is not None:
        law = phase.little
        say(
            "Little",
            f"{law.throughput_per_s:.2f}/s x {show_ms(law.latency_s * 1000)} = "
            f"{law.ratio * law.clients:.2f} of {law.clients} clients",
        )
    if len(phase.slices) > 2:
        line = sparkline([one.p50_ms for one in phase.slices])
        width = phase.slices[1].start_s - phase.slices[0].start_s
        say("p50 over time", f"{line}  (slices of {show_duration(width)})")
    if phase.goodput_share is not None:
        say("goodput", f"{show_share(phase.goodput_share)} of requests, {show_rate(phase.goodput_per_s)}")
    if phase.cost is not None:
        money = phase.cost
        whole = f", all worker time {show_usd(money.workers_usd)}" if money.workers_usd is not None else ""
        say(
            "cost",
            f"busy workers {show_usd(money.busy_usd)}{whole}; per 1k requests {show_usd(money.per_1k_requests)}, "
            f"per 1k output tokens {show_usd(money.per_1k_tokens)} at ${money.usd_per_hour:g}/h",
        )
    for name, times in phase.warnings.items():
        lines.append(Text(f"! {times} x {name}: {WARNINGS[name]}", style="yellow"))
    return lines


def _failures(phase: PhaseReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold red", pad_edge=False)
    for name in ("failures", "n", "meaning", "for example"):
        table.add_column(name, justify="right" if name == "n" else "left", overflow="fold")
    for one in phase.failures:
        table.add_row(
            one.error_class, str(one.n), one.meaning, one.example + (f" [{one.job_id}]" if one.job_id else "")
        )
    return table


def _verdicts(phase: PhaseReport) -> Text:
    text = Text()
    for number, verdict in enumerate(phase.verdicts):
        mark, style = ("✓", "green") if verdict.passed else ("✗", "bold red")
        text.append("\n" if number else "")
        text.append(f"{mark} {verdict.slo.text}", style=style)
        text.append(f"  measured {verdict.shown}")
        if verdict.unsure:
            text.append(f"  ({verdict.unsure})", style="dim")
    return text


def _footer(report: Report) -> RenderableType:
    words, style = HEADLINES.get(report.exit_code, ("", ""))
    lines: list[RenderableType] = [Text(f"! {note}", style="yellow") for note in report.notes]
    if report.stopped:
        lines.append(Text(f"stopped: {report.stopped}", style="yellow"))
    has_slos = any(phase.verdicts for phase in report.phases)
    if report.exit_code is Exit.PASS and not has_slos:
        words = "DONE (no objectives were given)"
    lines.append(Text(f"{words}  exit {int(report.exit_code)}", style=style))
    return Group(*lines)
