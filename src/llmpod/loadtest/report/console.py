"""Terminal report: the verdict, the figures, and the explanation."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmpod.loadtest.analysis.phase import PhaseReport
from llmpod.loadtest.report import facts, view
from llmpod.loadtest.report.report import Report
from llmpod.loadtest.units import show_duration, show_ms, show_rate

BARS = "▁▂▃▄▅▆▇█"
_GAP = Text("")
# Below this width each interval stands under its percentile; where there is no terminal, lines are as long as they
# need to be.
NARROW, NO_TERMINAL = 190, 200
STYLES = {"good": "green", "bad": "bold red", "warn": "bold yellow", "dim": "dim", "": ""}
MOST_WORKERS = 8


def sparkline(values: list[float | None], top: float | None = None) -> str:
    """Eight levels up to `top` (the largest value by default); lines beside each other need the same top."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top = top or max(known) or 1.0
    return "".join(" " if value is None else BARS[min(7, int(value / top * 7.999))] for value in values)


def show(report: Report, console: Console, metric: str | None = None) -> None:
    console.print()
    header = Text.assemble(("load test ", "bold"), ("  ".join(report.header), "dim"))
    console.print(header)
    narrow = console.width < NARROW
    full = facts.shown_in_full(report)
    for phase in full:
        console.print()
        console.print(_phase(phase, metric, narrow=narrow))
    table = view.phases(report)
    if table is not None:
        console.print()
        console.print(_table(table, narrow=narrow))
    console.print()
    console.print(_footer(report))


def _table(table: view.Table, *, narrow: bool, small: bool = True) -> Table:
    out = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for head in table.heads:
        wraps = head in ("for example", "objectives")
        justify = "left" if head in table.left else "right"
        out.add_column(head, justify=justify, no_wrap=not wraps, overflow="fold")  # type: ignore[arg-type]
    for row in table.rows:
        cells = []
        for head, cell in zip(table.heads, row, strict=False):
            text = Text(cell.text, style=STYLES[cell.tone])
            if small and cell.small and head != table.heads[0]:
                text.append(("\n" if narrow and head not in table.left else "  ") + cell.small, style="dim")
            cells.append(text)
        out.add_row(*cells)
    return out


def _phase(phase: PhaseReport, metric: str | None, *, narrow: bool) -> RenderableType:
    parts: list[RenderableType] = [_title(phase), _status(phase)]
    for table in (view.latencies(phase, metric), view.spreads(phase)):
        if table is not None:
            parts += [_GAP, _table(table, narrow=narrow)]
    if phase.shares:
        parts += [_GAP, _shares(phase)]
    parts.append(_GAP)
    parts += [Text.assemble((f"{label}  ", "bold"), words) for label, words in [*facts.facts(phase), *_lines(phase)]]
    for table in (view.workers(phase, MOST_WORKERS), view.prompts(phase), view.failures(phase), view.verdicts(phase)):
        if table is not None:
            parts += [_GAP, _table(table, narrow=False)]
    parts += [_GAP, Text.assemble(("why  ", "bold cyan"), phase.why)]
    return Group(*parts)


def _title(phase: PhaseReport) -> Text:
    text = Text(phase.phase.name, style="bold")
    text.append(f"  {phase.phase.shape}  {show_duration(phase.window_s)}", style="not bold dim")
    text.append(f"  n={phase.counted}  ", style="not bold")
    text.append(f"ok={phase.ok}", style="not bold green" if phase.ok else "not bold")
    text.append("  ")
    text.append(f"failed={phase.failed}", style="bold red" if phase.failed else "not bold dim")
    text.append(f"  {show_rate(phase.throughput_per_s)} done", style="not bold")
    text.append(f"  not counted: {facts.left_out(phase)}", style="not bold dim")
    return text


def _status(phase: PhaseReport) -> Text:
    status = facts.status(phase)
    text = Text(status.valid.text, style=STYLES[status.valid.tone])
    text.append(f"  {', '.join(status.facts)}", style="not bold dim")
    for words, fatal in status.doubts:
        text.append(f"\n  {'✗' if fatal else '!'} {words}", style="not bold yellow")
    return text


def _shares(phase: PhaseReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    retried = any(share.retry_ms for share in phase.shares)
    retries = ["retries ▞"] if retried else []
    for name in ("where it went", "wait ·", *retries, "delay ░", "exec █", "overhead ▒", "= total"):
        table.add_column(name, justify="left" if name == "where it went" else "right")
    table.add_column("")
    for share in phase.shares:
        bar = Text()
        total = max(share.total_ms, 1e-9)
        # A character of its own for each part: the bar is read without colours, too.
        for value, mark, colour in (
            (share.wait_ms, "·", "magenta"),
            (share.retry_ms, "▞", "red"),
            (share.delay_ms, "░", "yellow"),
            (share.exec_ms, "█", "green"),
            (share.overhead_ms, "▒", "blue"),
        ):
            bar.append(mark * round(max(0.0, value) / total * 32), style=colour)
        waits = (share.wait_ms, share.retry_ms) if retried else (share.wait_ms,)
        values = (*waits, share.delay_ms, share.exec_ms, share.overhead_ms, share.total_ms)
        table.add_row(share.label, *(show_ms(value) for value in values), bar)
    return table


def _lines(phase: PhaseReport) -> list[tuple[str, str]]:
    """Small pictures of what changed over time."""
    out = []
    if phase.health is not None and len(phase.health.points) > 1:
        points = phase.health.points[:: max(1, len(phase.health.points) // 60)]
        top = float(max(max(point.live, point.wanted) for point in points))
        live = sparkline([float(point.live) for point in points], top)
        out.append(("timeline", f"live {live}  wanted {sparkline([float(point.wanted) for point in points], top)}"))
    if len(phase.over_time) > 2:
        bins = phase.over_time
        done = sparkline([one.done / one.width_s if one.width_s > 0 else None for one in bins])
        failed = f"  failed {sparkline([float(one.failed) for one in bins])}" if any(one.failed for one in bins) else ""
        out.append(
            (
                "over time",
                f"done {done}  in flight {sparkline([one.in_flight for one in bins])}{failed}  "
                f"(of {show_duration(bins[0].width_s)} each)",
            )
        )
    if len(phase.slices) > 2:
        width = phase.slices[1].start_s - phase.slices[0].start_s
        line = sparkline([one.p50_ms for one in phase.slices])
        out.append(("p50 over time", f"{line}  (slices of {show_duration(width)})"))
    return out


def _footer(report: Report) -> RenderableType:
    words, tone = facts.headline(report)
    lines: list[RenderableType] = [Text(f"! {note}", style="yellow") for note in report.notes]
    if report.stopped:
        lines.append(Text(f"stopped: {report.stopped}", style="yellow"))
    if report.answer is not None:
        lines.append(Text(report.answer.text, style="bold"))
    lines.append(Text(f"{words}  exit {int(report.exit_code)}", style=STYLES[tone]))
    return Group(*lines)
