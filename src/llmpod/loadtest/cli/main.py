"""Commands of the load tester, and the mapping of exceptions to messages and exit codes."""

import argparse
import asyncio
import gc
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from llmpod.loadtest import environ
from llmpod.loadtest.cli import options
from llmpod.loadtest.cli.viewing import make_view
from llmpod.loadtest.errors import DirectoryError, Exit, LoadTestError, UsageError
from llmpod.loadtest.intake import line
from llmpod.loadtest.model import run_files
from llmpod.loadtest.report.ci import append_summary, write_junit
from llmpod.loadtest.report.console import NO_TERMINAL, show
from llmpod.loadtest.report.csv_export import write_csv
from llmpod.loadtest.report.html import write_html
from llmpod.loadtest.report.report import Report, build, to_json


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Never lets a traceback reach the person at the keyboard."""

    def act(environment: environ.Environment) -> Exit:
        command, chosen = options.parse(sys.argv[1:] if argv is None else argv)
        return COMMANDS[command](chosen, environment)

    return guarded(act)


def guarded(act: Callable[[environ.Environment], Exit]) -> int:
    """Calls `act` with the environment and returns its exit code; an exception becomes one line on stderr and its
    exit code."""
    environment = environ.read()
    try:
        return int(act(environment))
    except LoadTestError as error:
        return _fail(environment.api_key.redact(str(error)), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return int(Exit.ERROR)
    except Exception as error:  # noqa: BLE001 - the edge of the program
        return _fail(_defect(error, environment), Exit.ERROR)


def _fail(message: str, code: Exit) -> int:
    sys.stderr.write(f"{options.PROG}: {' '.join(message.split())}\n")
    return int(code)


def _defect(error: Exception, environment: environ.Environment) -> str:
    text = line(environment.api_key.redact(str(error)))
    return f"a defect of this tool: {type(error).__name__}: {text} ({_place(error)})"


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"


def _run(chosen: argparse.Namespace, environment: environ.Environment) -> Exit:
    from llmpod.loadtest.cli.session import run_new

    return asyncio.run(run_new(chosen, environment, publish))


def _resume(chosen: argparse.Namespace, environment: environ.Environment) -> Exit:
    from llmpod.loadtest.cli.session import run_again

    return asyncio.run(run_again(Path(chosen.directory), chosen, environment, publish))


def _report(chosen: argparse.Namespace, environment: environ.Environment) -> Exit:
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


def _compare(chosen: argparse.Namespace, environment: environ.Environment) -> Exit:
    from llmpod.loadtest.cli.compare import compare_directories
    from llmpod.loadtest.cli.quality import compare_quality, is_quality

    if is_quality(chosen):
        return compare_quality(chosen, make_console(environment))
    return compare_directories(chosen, make_console(environment))


def _capacity(chosen: argparse.Namespace, environment: environ.Environment) -> Exit:
    from llmpod.loadtest.capacity.capacity import answer

    return answer(chosen, make_console(environment))


def _quality(chosen: argparse.Namespace, environment: environ.Environment) -> Exit:
    from llmpod.loadtest.cli.quality import run_quality

    return asyncio.run(run_quality(chosen, environment, make_console(environment)))


def make_console(environment: environ.Environment, *, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else max(NO_TERMINAL, shutil.get_terminal_size().columns)
    # No markup: error texts and paths may hold brackets, and must not be read as styles.
    return Console(file=stream, markup=False, highlight=False, no_color=environment.plain or None, width=width)


def publish(
    built: Report,
    recorded: run_files.Recorded,
    directory: Path,
    chosen: argparse.Namespace,
    environment: environ.Environment,
) -> Exit:
    """Writes run.json, requests.csv and report.html, then prints. What cannot be written costs the others nothing."""
    run_files.make_directory(directory)
    writers: list[Callable[[], None]] = [
        lambda: run_files.write_json(directory / run_files.RUN, to_json(built)),
        lambda: write_csv(directory / "requests.csv", recorded.jobs),
        lambda: write_html(directory / "report.html", built, recorded.jobs),
    ]
    if getattr(chosen, "csv", None):
        writers.append(lambda: write_csv(Path(chosen.csv), recorded.jobs))
    if getattr(chosen, "junit", None):
        writers.append(lambda: write_junit(Path(chosen.junit), built))
    if getattr(chosen, "summary", None):
        writers.append(lambda: append_summary(Path(chosen.summary), built))
    writers.append(lambda: _print(built, directory, chosen, environment))
    problems = []
    for write in writers:
        try:
            write()
        except DirectoryError as error:
            problems.append(str(error))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect in one of them must not cost the others, nor a run's results
            problems.append(_defect(error, environment))
    for problem in problems:
        _fail(problem, Exit.ERROR)
    return Exit.ERROR if problems and built.exit_code is Exit.PASS else built.exit_code


def _print(built: Report, directory: Path, chosen: argparse.Namespace, environment: environ.Environment) -> None:
    if chosen.format == "json":
        sys.stdout.write(json.dumps(to_json(built), indent=1) + "\n")
    elif chosen.format == "table":
        console = make_console(environment)
        show(built, console, chosen.metric)
        console.print(f"files  {directory}/  report.html  run.json  requests.jsonl  requests.csv", style="dim")


COMMANDS = {
    "run": _run,
    "resume": _resume,
    "report": _report,
    "compare": _compare,
    "capacity": _capacity,
    "quality": _quality,
}
