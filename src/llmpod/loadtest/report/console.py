"""Terminal report: the verdict, the figures, and the explanation."""

import shutil
import sys
from collections.abc import Collection

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
# A character of its own for each part of a job's time: the bar is read without colours, too.
PARTS = {
    "wait": ("·", "magenta"),
    "retries": ("▞", "red"),
    "delay": ("░", "yellow"),
    "exec": ("█", "green"),
    "overhead": ("▒", "blue"),
}


def plain_table(*heads: str, left: Collection[str] = ()) -> Table:
    """Columns without lines, to the right but those in `left`."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head in left else "right")
    return table


def make_console(*, plain: bool) -> Console:
    """Of stdout. `plain`: without colours."""
    width = None if sys.stdout.isatty() else max(NO_TERMINAL, shutil.get_terminal_size().columns)
    # No markup: error texts and paths may hold brackets, and must not be read as styles.
    return Console(file=sys.stdout, markup=False, highlight=False, no_color=plain or None, width=width)


def sparkline(values: list[float | None], top: float | None = None) -> str:
    """Eight levels up to `top` (the largest value by default); lines beside each other need the same top."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top = top or max(known) or 1.0
    return "".join(" " if value is None else BARS[min(7, int(value / top * 7.999))] for value in values)


def show(report: Report, console: Console, metric: str | None = None) -> None:
    console.print()
    console.print(Text.assemble(("load test ", "bold"), ("  ".join(report.header), "dim")))
    narrow = console.width < NARROW
    for phase in facts.shown_in_full(report):
        console.print()
        console.print(_phase(phase, metric, narrow=narrow))
    table = view.phases(report)
    if table is not None:
        console.print()
        console.print(_table(table, narrow=narrow))
    console.print()
    console.print(_footer(report))


def _table(table: view.Table, *, narrow: bool) -> Table:
    out = plain_table(*table.heads, left=table.left)
    for column in out.columns:
        column.no_wrap, column.overflow = column.header not in ("for example", "objectives"), "fold"
    for row in table.rows:
        cells = []
        for head, cell in zip(table.heads, row, strict=False):
            text = Text(cell.text, style=STYLES[cell.tone])
            if cell.small and head != table.heads[0]:
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
    return Text.assemble(
        (phase.phase.name, "bold"),
        (f"  {phase.phase.shape}  {show_duration(phase.window_s)}", "dim"),
        f"  n={phase.counted}  ",
        (f"ok={phase.ok}", "green" if phase.ok else ""),
        "  ",
        (f"failed={phase.failed}", "bold red" if phase.failed else "dim"),
        f"  {show_rate(phase.throughput_per_s)} done",
        (f"  not counted: {facts.left_out(phase)}", "dim"),
    )


def _status(phase: PhaseReport) -> Text:
    status = facts.status(phase)
    text = Text(status.valid.text, style=STYLES[status.valid.tone])
    text.append(f"  {', '.join(status.facts)}", style="not bold dim")
    for words, fatal in status.doubts:
        text.append(f"\n  {'✗' if fatal else '!'} {words}", style="not bold yellow")
    return text


def _shares(phase: PhaseReport) -> Table:
    parts = [name for name in PARTS if name != "retries" or any(share.retry_ms for share in phase.shares)]
    heads = [f"{name} {PARTS[name][0]}" for name in parts]
    table = plain_table("where it went", *heads, "= total", "", left=("where it went", ""))
    for share in phase.shares:
        bar = Text()
        for name, ms in share.parts.items():
            mark, colour = PARTS[name]
            bar.append(mark * round(max(0.0, ms) / max(share.total_ms, 1e-9) * 32), style=colour)
        table.add_row(share.label, *(show_ms(share.parts[name]) for name in parts), show_ms(share.total_ms), bar)
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
