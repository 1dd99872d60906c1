"""Table of the commands. A new one is a line here and a module with `parse` and `act`."""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError

COMMANDS = {
    "run": "llmpod.loadtest.cli.run",
    "report": "llmpod.loadtest.cli.report",
    "compare": "llmpod.loadtest.cli.compare",
    "resume": "llmpod.loadtest.cli.resume",
    "capacity": "llmpod.loadtest.cli.capacity",
    "quality": "llmpod.loadtest.cli.quality",
    "watch": "llmpod.loadtest.cli.watch",
    "smoke": "llmpod.loadtest.cli.smoke",
}
"""Each command and its module, which has the functions of `Command`. It is imported when the command is run."""


class Command(Protocol):
    """What the module of a command has."""

    def parse(self, words: Sequence[str]) -> Any:
        """The options from the words behind the command's name. Raises UsageError; --help ends the program."""

    def act(self, options: Any, environment: Environment) -> Exit:
        """Runs the command with the options that `parse` returned. Raises LoadTestError."""


def module(command: str) -> Command:
    return cast("Command", importlib.import_module(COMMANDS[command]))


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """(command, options). Raises UsageError."""
    words = list(argv)
    command = "run"
    if words and not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            raise UsageError(f"there is no command '{words[0]}': there are {', '.join(COMMANDS)}")
        command = words.pop(0)
    return command, module(command).parse(words)
