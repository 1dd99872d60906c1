"""Report of a run as it goes out: run.json, requests.csv, report.html, the files asked for, the terminal."""

import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llmpod.loadtest.cli.main import fail, internal_error
from llmpod.loadtest.cli.viewing import make_view
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import DirectoryError, Exit, UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.options import ReportOptions, ViewOptions
from llmpod.loadtest.report.ci import append_summary, write_junit
from llmpod.loadtest.report.console import make_console, show
from llmpod.loadtest.report.csv_export import write_csv
from llmpod.loadtest.report.html import write_html
from llmpod.loadtest.report.report import Report, build, to_json


def report(chosen: ReportOptions, environment: Environment) -> Exit:
    """The report of a recorded run, again or with other objectives."""
    if chosen.directory is None:
        raise UsageError("report needs a DIR")
    directory = Path(chosen.directory)
    gc.disable()  # a hundred thousand records are made, and none of them becomes garbage before the end
    try:
        recorded = run_files.read(directory)
        built = build(recorded, make_view(chosen, recorded.plan))
        return publish(built, recorded, Path(chosen.out) if chosen.out else directory, chosen, environment)
    finally:
        gc.enable()


def publish(
    built: Report, recorded: run_files.Recorded, directory: Path, chosen: ViewOptions, environment: Environment
) -> Exit:
    """Writes all files, then prints. An output that cannot be written leaves the others unharmed."""
    run_files.make_directory(directory)
    writers: list[Callable[[], None]] = [
        lambda: run_files.write_json(directory / run_files.RUN, to_json(built)),
        lambda: write_csv(directory / "requests.csv", recorded.jobs),
        lambda: write_html(directory / "report.html", built, recorded.jobs),
    ]
    if chosen.csv:
        writers.append(partial(write_csv, Path(chosen.csv), recorded.jobs))
    if chosen.junit:
        writers.append(partial(write_junit, Path(chosen.junit), built))
    if chosen.summary:
        writers.append(partial(append_summary, Path(chosen.summary), built))
    writers.append(lambda: _print(built, directory, chosen, environment))
    problems = []
    for write in writers:
        try:
            write()
        except DirectoryError as error:
            problems.append(str(error))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - one writer's error must not cost the others
            problems.append(internal_error(error, environment))
    for problem in problems:
        fail(problem, Exit.ERROR)
    return Exit.ERROR if problems and built.exit_code is Exit.PASS else built.exit_code


def _print(built: Report, directory: Path, chosen: ViewOptions, environment: Environment) -> None:
    if chosen.format == "json":
        sys.stdout.write(json.dumps(to_json(built), indent=1) + "\n")
    elif chosen.format == "table":
        console = make_console(plain=environment.plain)
        show(built, console, chosen.metric)
        console.print(f"files  {directory}/  report.html  run.json  requests.jsonl  requests.csv", style="dim")
