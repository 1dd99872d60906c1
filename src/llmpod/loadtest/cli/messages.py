"""Messages on stderr, and the console that commands print on."""

import shutil
import sys
from pathlib import Path

from rich.console import Console

from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit
from llmpod.loadtest.intake import line
from llmpod.loadtest.options import PROG
from llmpod.loadtest.report.console import NO_TERMINAL


def fail(message: str, code: Exit) -> int:
    """Writes a message as one line on stderr; returns the exit code."""
    sys.stderr.write(f"{PROG}: {' '.join(message.split())}\n")
    return int(code)


def internal_error(error: Exception, environment: Environment) -> str:
    """An exception that nobody expected, with the line of code it comes from and without the API key."""
    text = line(environment.api_key.redact(str(error)))
    return f"internal error of the load tester: {type(error).__name__}: {text} ({_place(error)})"


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"


def make_console(environment: Environment) -> Console:
    width = None if sys.stdout.isatty() else max(NO_TERMINAL, shutil.get_terminal_size().columns)
    # No markup: error texts and paths may hold brackets, and must not be read as styles.
    return Console(file=sys.stdout, markup=False, highlight=False, no_color=environment.plain or None, width=width)
