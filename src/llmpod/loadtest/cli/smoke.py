"""Command `smoke`: tells in a few jobs whether a deployment works; writes down what was deployed."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from llmpod.loadtest.cli.target import resolve
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.options import SmokeOptions
from llmpod.loadtest.report.console import make_console
from llmpod.loadtest.run.client import connected
from llmpod.loadtest.smoke.checks import Result, Smoke
from llmpod.loadtest.smoke.record import make_record, performance
from llmpod.loadtest.units import show_ms


def act(options: SmokeOptions, environment: Environment) -> Exit:
    base_url = resolve(options, environment)
    if options.run is not None:
        if options.record is None:
            raise UsageError("--run needs --record: its figures go into the record")
        performance(Path(options.run))  # a directory that holds no run is found before anything is sent
    console = None if options.format == "json" else make_console(plain=environment.plain)
    smoke, results = asyncio.run(_run(options, base_url, environment, console))
    code = verdict(results)
    if options.record is not None and code is Exit.PASS:
        run = None if options.run is None else Path(options.run)
        run_files.write_json(Path(options.record), make_record(base_url, smoke.facts, results, options.image, run))
    if console is None:
        rows = {"endpoint": base_url, "passed": code is Exit.PASS, "facts": smoke.facts}
        sys.stdout.write(json.dumps({**rows, "checks": [asdict(one) for one in results]}, indent=1) + "\n")
    else:
        _close(console, smoke, results, options.record if code is Exit.PASS else None)
    return code


def verdict(results: Sequence[Result]) -> Exit:
    failed = {result.name for result in results if result.passed is False}
    if "reachable" in failed:
        return Exit.ERROR
    return Exit.SLO_FAILED if failed else Exit.PASS


async def _run(
    options: SmokeOptions, base_url: str, environment: Environment, console: Console | None
) -> tuple[Smoke, list[Result]]:
    async with connected(base_url, environment.api_key, options.limits) as client:
        smoke = Smoke(client, options)
        return smoke, await smoke.run(lambda result: _show(console, result))


def _show(console: Console | None, result: Result) -> None:
    if console is None:
        return
    word, style = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "dim")}[result.passed]
    took = show_ms(result.took_ms) if result.took_ms is not None else ""
    console.print(f"{word:<7}{result.name:<11}{took:>9}  {result.detail}", style=style)


def _close(console: Console, smoke: Smoke, results: Sequence[Result], record: str | None) -> None:
    told = ", ".join(f"{name} {value}" for name, value in sorted(smoke.facts.items()))
    console.print(f"worker: {told or 'says nothing about itself'}", style="dim")
    if record is not None:
        console.print(f"record: {record}", style="dim")
    failed = sum(1 for result in results if result.passed is False)
    made = sum(1 for result in results if result.passed is not None)
    console.print(f"{made - failed} of {made} checks passed", style="bold red" if failed else "bold green")
