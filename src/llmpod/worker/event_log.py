"""Event log: one JSON object per line on stdout. A failure to log never fails a job.

Jobs write `start` and `end` (fields: docs/events.md); the worker itself writes `setting_corrected`, `loading`, `ready`
and the like. Log records of vLLM and the SDK come out in the same form as `log` events. A full disk or a closed stdout
costs the line, never the job; what JSON cannot hold costs neither. Addresses are written without their queries, and the
values of variables that hold secrets (environ.secrets) are not written.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from llmpod.worker import environ
from llmpod.worker.plain_json import dumps

Emit = Callable[..., None]
"""``emit(event, **fields)``: writes one event. Fields that are None are left out."""


class EventLog:
    """Writes events to a text stream, one whole line each. Never raises."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.lost = 0  # lines that could not be written; reported by the next one that can
        self.lost_in_all = 0

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event. `ts` (UTC, ISO 8601, milliseconds) and `event` come first."""
        try:
            named = {name: value for name, value in fields.items() if value is not None}
            record: dict[str, Any] = {"ts": _now(), "event": event} | named
            if self.lost:
                record["lost_lines"] = self.lost
            line = _without_secrets(dumps(record).decode(), self._secrets)
            # Looked up at each line: whoever replaces sys.stdout (a test, a capture) means our lines too.
            stream = self._stream or sys.stdout
            with self._lock:
                stream.write(line + "\n")
                stream.flush()
            self.lost = 0
        except Exception:  # noqa: BLE001 - a log line must not cost a job its result
            self.lost += 1
            self.lost_in_all += 1

    @functools.cached_property
    def _secrets(self) -> tuple[str, ...]:
        """Secrets as they stand in a line, the longest first: one may be the beginning of another."""
        return tuple(sorted((json.dumps(value)[1:-1] for value in environ.secrets()), key=len, reverse=True))


_ADDRESS = re.compile(r"""(\w://)(?:[^\s/@"'\\?#]*@)?([^\s"'<>\\?#]*)([?#][^\s"'<>\\]*)?""")


def _without_secrets(line: str, secrets: tuple[str, ...]) -> str:
    """Remove known secrets, and passwords and queries from addresses: RunPod's own contain the worker's key."""
    for secret in secrets:
        line = line.replace(secret, "…")
    if "://" not in line:
        return line
    return _ADDRESS.sub(lambda found: found[1] + found[2] + ("?…" if found[3] else ""), line)


def describe(error: BaseException) -> str:
    """Describe an exception of a network call for the log: type and status or cause, without the address."""
    cause = getattr(error, "status", None) or getattr(error, "strerror", None)
    name = type(error).__name__
    return f"{name}: HTTP {cause}" if isinstance(cause, int) else f"{name}: {cause}" if cause else name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class JsonLogHandler(logging.Handler):
    """Converts log records of other libraries to `log` events."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = None
        if record.exc_info and record.exc_info[1] is not None:
            error = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's malformed log call is not our job's failure
            message = str(record.msg)
        self._log.emit("log", level=record.levelname.lower(), logger=record.name, message=message, error=error)


class StandardErrorHandler(JsonLogHandler):
    """JsonLogHandler on stderr, for vLLM's child processes: stdout is for the worker's own events.

    Named in `logging_config`; a child process imports it by path and calls it without arguments.
    """

    def __init__(self) -> None:
        super().__init__(EventLog(sys.stderr))


class MilestoneHandler(logging.FileHandler):
    """Writes vLLM's log lines, each after the time in monotonic seconds, into a file that the worker reads at start.

    What vLLM says of its progress is only in its child processes' logs. A limited number of lines: the start's.
    """

    LINES = 500

    def __init__(self, filename: str) -> None:
        super().__init__(filename, delay=True, encoding="utf-8")
        self._left = self.LINES

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._left -= 1
        if self._left >= 0:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The time and the beginning of the message, on one line."""
        return f"{time.monotonic():.3f} {' '.join(record.getMessage()[:500].split())}"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """A line that cannot be written is not worth one on stderr."""


def logging_config(level: str, error_log: Path, milestones: Path) -> dict[str, Any]:
    """A `logging.config` dictionary for vLLM and its child processes.

    Errors also go, with their tracebacks, into the file `error_log`: only the child process that failed knows why an
    engine did not start, and the worker reads the reason there. `milestones`: the file of MilestoneHandler.
    """
    name = f"{StandardErrorHandler.__module__}.{StandardErrorHandler.__qualname__}"
    milestone = f"{MilestoneHandler.__module__}.{MilestoneHandler.__qualname__}"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "json": {"class": name, "level": level},
            "milestones": {"class": milestone, "filename": str(milestones), "level": "INFO"},
            "error_log": {
                "class": "logging.FileHandler",
                "filename": str(error_log),
                "level": "ERROR",
                "delay": True,
                "encoding": "utf-8",
            },
        },
        "loggers": {
            "vllm": {
                "handlers": ["json", "error_log", "milestones"],
                "level": "DEBUG" if level == "DEBUG" else "INFO",
                "propagate": False,
            },
            "vllm.config.scheduler": {"level": "ERROR"},  # it warns of a scheduler class that is not its own: ours
            "torch": {"handlers": ["json"], "level": level, "propagate": False},  # it brings a form of its own
        },
        "root": {"handlers": ["json"], "level": level},
    }


def use_utf8_line_buffered_stdout() -> None:
    """Set stdout to UTF-8 and line buffering: a container's stdout is a pipe, and its locale may be C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
