"""The exception of this package, and exit codes of the command."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `llmpod plan`."""

    FITS = 0
    UNKNOWN = 1  # it could not be told
    USAGE = 2
    TOO_LARGE = 3


class PlanError(Exception):
    """The model cannot be read; the message is one line, and says what is wrong and where."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split())[:500])


class UsageError(PlanError):
    """The command line asks for something that cannot be."""
