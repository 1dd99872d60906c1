"""Quality command: sends a data set's rows, judges the answers, and decides by the gate."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from llmpod.loadtest.analysis.analyse import analyse
from llmpod.loadtest.analysis.phase import View
from llmpod.loadtest.cli.session import run_to_end, signals
from llmpod.loadtest.cli.target import made_by, resolve
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model import plan as plans
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.plan import Mode, Phase, Plan
from llmpod.loadtest.model.run_files import Journal, LineFile
from llmpod.loadtest.options import CompareOptions, QualityOptions, RunOptions
from llmpod.loadtest.quality import dataset, gate, results
from llmpod.loadtest.quality.dataset import Row
from llmpod.loadtest.quality.results import MOST_TRANSPORT, Change, QualityReport, Results, compare
from llmpod.loadtest.report.console import make_console, plain_table
from llmpod.loadtest.run.client import connected
from llmpod.loadtest.run.context import Clock, RunContext
from llmpod.loadtest.run.guards import Guards
from llmpod.loadtest.run.polling import PollPace
from llmpod.loadtest.run.probes import HealthWatch
from llmpod.loadtest.run.runner import Runner
from llmpod.loadtest.units import count, show_share

PHASE = "quality"
PROGRESS_S = 10.0
MOST_SHOWN = 3


class Inputs:
    """The rows' inputs as the bodies of jobs, round after round."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def name(self, index: int) -> str | None:
        return self._rows[index % len(self._rows)].group

    def body(self, mode: Mode, phase: str, index: int) -> dict[str, Any]:
        return {"input": self._rows[index % len(self._rows)].input}


def act(options: QualityOptions, environment: Environment) -> Exit:
    return asyncio.run(run_quality(options, environment, make_console(plain=environment.plain)))


async def run_quality(options: QualityOptions, environment: Environment, console: Console) -> Exit:
    rows = dataset.read(options.dataset)
    conditions = gate.read(options.gate, {row.group for row in rows}) if options.gate else ()
    base_url = resolve(options, environment)
    directory = Path(options.out or f"runs/{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-quality")
    if (directory / run_files.PLAN).exists():
        raise UsageError(f"{directory} already holds a run; another --out starts a new one")
    planned = len(rows) * options.repeat
    phase = Phase(PHASE, "closed", "closed", concurrency=options.concurrency, requests=planned, fill_until_done=False)
    plan = Plan((phase,), cast("Mode", options.mode), seed=0)
    meta = {**made_by(options, base_url), "dataset": options.dataset, "gate": options.gate, "repeat": options.repeat}
    facts = {"format": run_files.FORMAT, "meta": meta, "plan": plans.to_dict(plan)}
    run_files.make_directory(directory)
    run_files.write_redacted(directory / run_files.PLAN, facts, environment.api_key)
    verdicts = LineFile(directory / results.VERDICTS)
    taken = Results(rows, verdicts)
    try:
        runner, notes = await _send(options, environment, base_url, directory, plan, taken)
    finally:
        verdicts.close()
    jobs = runner.tally.finished
    groups = taken.groups()
    slos = tuple(one.slo for one in conditions if one.slo is not None)
    measured = analyse(phase, jobs, jobs, [], {}, View(slos=slos)).verdicts if slos and jobs else ()
    latencies = dict(zip((one.text for one in conditions if one.slo is not None), measured, strict=False))
    unanswered = groups[-1].transport / groups[-1].ended if groups[-1].ended else None
    shares = {group.name: group.as_share for group in groups} | {"transport": gate.Share(unanswered)}
    stopped = runner.stopped
    judged = gate.judge(conditions, shares, groups[-1].leaks if groups[-1].guarded else None, latencies)
    decision = gate.decide(judged) if judged and stopped is None else None
    report = QualityReport(
        meta=meta,
        groups=groups,
        planned=planned,
        gate=judged,
        decision=decision,
        stopped=stopped.reason if stopped else None,
        notes=notes,
        exit_code=results.exit_code(groups[-1], decision, stopped.exit_code if stopped else None),
    )
    written = results.to_json(report)
    run_files.write_redacted(directory / results.FILE, written, environment.api_key)
    if options.format == "json":
        sys.stdout.write(json.dumps(written, indent=1) + "\n")
    elif options.format == "table":
        _show(report, console)
        console.print(f"files  {directory}/  {results.FILE}  {results.VERDICTS}  requests.jsonl", style="dim")
    return report.exit_code


async def _send(
    options: QualityOptions, environment: Environment, base_url: str, directory: Path, plan: Plan, taken: Results
) -> tuple[Runner, list[str]]:
    """Sends every row and waits for all ends, or for an early one."""
    journal, notes = Journal(directory), list[str]()
    try:
        async with connected(base_url, environment.api_key, options.limits) as client:
            sending = RunOptions(timeout=options.timeout, retries=options.retries, expect_blocked=True)
            context = RunContext(client, Clock(), journal, sending, PollPace(None), keep=taken.take)
            health = HealthWatch(context, 5.0)
            guards = Guards(alarm=lambda: health.alarm if health.deserted_s else None)
            runner = Runner(context, plan, Inputs(taken.rows), guards, health)
            watching = asyncio.create_task(_progress(runner, plan.phases[0].requests or 0, options.format))
            try:
                with signals(runner):
                    await run_to_end(runner, notes)
            finally:
                watching.cancel()
    finally:
        journal.close()
    for job in runner.tally.finished:
        taken.take(job, None)  # those that ended without an output
    return runner, notes + runner.tally.notes


async def _progress(runner: Runner, planned: int, shown: str) -> None:
    while shown == "table":
        await asyncio.sleep(PROGRESS_S)
        sys.stderr.write(f"{runner.tally.done} of {count(planned, 'job')} done\n")


def compare_quality(options: CompareOptions, console: Console) -> Exit:
    """Compares two quality runs; with --fail-on-worse a pass rate that is clearly lower is exit 3."""
    changes = compare(results.read_groups(Path(options.a)), results.read_groups(Path(options.b)))
    if not changes:
        raise UsageError(f"{options.a} and {options.b} measured no intent in common")
    if options.format == "json":
        rows = [asdict(one) for one in changes]
        sys.stdout.write(json.dumps({"quality": rows}, indent=1) + "\n")
    else:
        console.print(f"A {options.a}\nB {options.b}", style="dim")
        _show_changes(changes, console)
    worse = any(one.clear and one.b < one.a for one in changes)
    return Exit.SLO_FAILED if worse and options.fail_on_worse else Exit.PASS


def is_quality(options: CompareOptions) -> bool:
    """Whether a comparison is of two quality runs. Raises UsageError when it is of one and another run."""
    kinds = [results.is_quality(Path(directory)) for directory in (options.a, options.b)]
    if kinds[0] != kinds[1]:
        raise UsageError("a quality run can only be compared with another quality run")
    return kinds[0]


def _show(report: QualityReport, console: Console) -> None:
    """Prints the report: a table of intents, examples of what failed, the gate."""
    table = plain_table(
        "intent", "rows", "pass", "fail", "pass rate", "95% interval", "leaks", "cut", "no answer", left=["intent"]
    )
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


def _show_changes(changes: Sequence[Change], console: Console) -> None:
    """Prints a comparison of two runs' pass rates."""
    table = plain_table("intent", "A", "B", "B - A", "", "rows", left=["intent"])
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
