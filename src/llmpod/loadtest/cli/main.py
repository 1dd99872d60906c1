"""Entry point of the load tester: runs a command, and turns exceptions into messages and exit codes."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import walk_tb

from llmpod.loadtest import environ
from llmpod.loadtest.cli import commands
from llmpod.loadtest.errors import Exit, LoadTestError
from llmpod.loadtest.intake import line
from llmpod.loadtest.options import PROG


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. The user never sees a traceback."""

    def act(environment: environ.Environment) -> Exit:
        command, chosen = commands.parse(sys.argv[1:] if argv is None else argv)
        done = commands.action(command)(chosen, environment)
        return done if isinstance(done, Exit) else asyncio.run(done)

    return guarded(act)


def guarded(act: Callable[[environ.Environment], Exit]) -> int:
    """Calls `act` with the environment and returns its exit code; an exception becomes one line on stderr and its
    exit code."""
    environment = environ.read()
    try:
        return int(act(environment))
    except LoadTestError as error:
        return fail(environment.api_key.redact(str(error)), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return int(Exit.ERROR)
    except Exception as error:  # noqa: BLE001 - the edge of the program
        return fail(internal_error(error, environment), Exit.ERROR)


def fail(message: str, code: Exit) -> int:
    """Writes a message as one line on stderr; returns the exit code."""
    sys.stderr.write(f"{PROG}: {' '.join(message.split())}\n")
    return int(code)


def internal_error(error: Exception, environment: environ.Environment) -> str:
    """An exception that nobody expected, with the line of code it comes from and without the API key."""
    *_, (frame, number) = walk_tb(error.__traceback__)
    text = line(environment.api_key.redact(str(error)))
    place = f"{Path(frame.f_code.co_filename).name}:{number}"
    return f"internal error of the load tester: {type(error).__name__}: {text} ({place})"
