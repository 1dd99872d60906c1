"""Quality report and comparison as tables on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from llmpod.loadtest.errors import Exit
from llmpod.loadtest.quality.compare import Change
from llmpod.loadtest.quality.results import MOST_TRANSPORT, QualityReport
from llmpod.loadtest.units import count, show_share

MOST_SHOWN = 3


def show(report: QualityReport, console: Console) -> None:
    """Prints the report: a table of intents, examples of what failed, the gate."""
    table = _table("intent", "rows", "pass", "fail", "pass rate", "95% interval", "leaks", "cut", "no answer")
    for group in report.groups:
        interval = f"{show_share(group.low)} to {show_share(group.high)}" if group.share is not None else ""
        table.add_row(
            group.name,
            str(group.rows),
            str(group.passed),
            str(group.failed),
            show_share(group.share),
            interval,
            str(group.leaks or ""),
            str(group.cut or ""),
            str(group.transport or ""),
            style="bold" if group is report.overall else None,
        )
    console.print(table)
    for group in report.groups:
        for example in group.examples[:MOST_SHOWN]:
            console.print(f"{group.name} {example.id}: {'; '.join(example.reasons)}")
            if example.text:
                console.print(f"    {example.text}", style="dim")
    for note in report.notes:
        console.print(note, style="dim")
    for one in report.gate:
        unsure = f"  ({one.unsure})" if one.unsure else ""
        console.print(
            f"{'✓' if one.passed else '✗'} {one.text}: {one.shown}{unsure}", style=None if one.passed else "red"
        )
    console.print(_verdict(report), style="bold green" if report.exit_code is Exit.PASS else "bold red")


def _verdict(report: QualityReport) -> str:
    if report.stopped is not None:
        return f"STOPPED: {report.stopped}"
    if report.exit_code is Exit.INVALID:
        unanswered = f"{report.overall.transport} of {count(report.planned, 'job')} had no answer"
        return f"NOT VALID: {unanswered}, more than {MOST_TRANSPORT:.0%} say nothing about quality"
    return (report.decision or "no gate given").upper()


def show_changes(changes: Sequence[Change], console: Console) -> None:
    """Prints a comparison of two runs' pass rates."""
    table = _table("intent", "A", "B", "B - A", "", "rows")
    for one in changes:
        word = "worse" if one.b < one.a else "better"
        table.add_row(
            one.intent,
            show_share(one.a),
            show_share(one.b),
            f"{(one.b - one.a) * 100:+.1f} points",
            word if one.clear else "no clear difference",
            f"{one.rows_a}, {one.rows_b}",
        )
    console.print(table)
    console.print(
        f"a word of difference is wrong in at most 5 % of comparisons of equal runs, all {len(changes)} lines together",
        style="dim",
    )


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
