"""Exceptions that end a command, and exit codes.

The codes are a contract with whoever scripts this tool; other tools' codes differ (k6 leaves with 99, Gatling with 2).
"""

from enum import IntEnum


class Exit(IntEnum):
    PASS = 0
    ERROR = 1  # the run could not be done: nothing usable was measured
    USAGE = 2
    SLO_FAILED = 3
    ABORTED = 4  # a guard stopped it: cost, error rate, or an SLO with --abort-on-fail
    INVALID = 5  # measured, but the measurement does not meet the validity checks
    INTERRUPTED = 130


class LoadTestError(Exception):
    """A failure with a one-line message for the user."""

    exit_code = Exit.ERROR


class UsageError(LoadTestError):
    """The command line, or a file it names, asks for something that cannot be."""

    exit_code = Exit.USAGE


class DirectoryError(LoadTestError):
    """A results directory that cannot be read or written."""

    exit_code = Exit.USAGE
