"""Table of the commands. A new one is a line here, a class of options and a function that acts on them."""

import importlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from llmpod.loadtest import options
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.flags import make_parser


class Command(NamedTuple):
    """`module`: of llmpod.loadtest.cli, imported when the command is run; its function `function` acts."""

    options: type
    module: str
    function: str = "act"
    epilog: str | None = None


COMMANDS = {
    "run": Command(options.RunOptions, "session", "run", options.EPILOG),
    "report": Command(options.ReportOptions, "publish", "report"),
    "compare": Command(options.CompareOptions, "compare"),
    "resume": Command(options.ResumeOptions, "session", "resume"),
    "capacity": Command(options.CapacityOptions, "capacity"),
    "quality": Command(options.QualityOptions, "quality", epilog=options.QUALITY_EPILOG),
    "watch": Command(options.WatchOptions, "watch", "watch"),
    "smoke": Command(options.SmokeOptions, "smoke", epilog=options.SMOKE_EPILOG),
}


def action(command: str) -> Callable[[Any, Environment], Exit | Coroutine[Any, Any, Exit]]:
    """What acts on a command's options, at once or as a coroutine. It raises LoadTestError."""
    found = COMMANDS[command]
    module: Any = importlib.import_module(f"llmpod.loadtest.cli.{found.module}")
    acts: Callable[[Any, Environment], Exit | Coroutine[Any, Any, Exit]] = getattr(module, found.function)
    return acts


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """(command, options). Raises UsageError; --help ends the program."""
    words = list(argv)
    command = "run"
    if words and not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            raise UsageError(f"there is no command '{words[0]}': there are {', '.join(COMMANDS)}")
        command = words.pop(0)
    chosen = COMMANDS[command]
    prog = options.PROG if command == "run" else f"{options.PROG} {command}"
    return command, make_parser(chosen.options, prog, chosen.epilog).parse_args(words, chosen.options())
