"""Journal: a JSON line per transition of a job or end of a request, without inputs and outputs.

Written off the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from datetime import UTC, datetime

import orjson

from llmpod.endpoint.errors import StartError
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.job import Job, JobState

FLUSH_S = 0.05


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def record(job: Job, was: JobState | None, reason: str) -> dict[str, object]:
    """The fields of one line about a job."""
    return {
        "ts": utc_now(),
        "event": "job",
        "job_id": job.id,
        "from": None if was is None else was.value,
        "to": job.state.value,
        "reason": reason,
        "worker_id": job.worker_id,
        "retries": job.retries or None,
        "delay_ms": job.delay_ms,
        "execution_ms": job.execution_ms,
    }


STDOUT = 1  # the descriptor: sys.stdout may be a stand-in that has none


class Journal:
    """Lines go where `options.journal` says. Raises StartError where the file cannot be opened."""

    def __init__(self, options: Options) -> None:
        self._lines: list[bytes] = []
        self._file: io.FileIO | None = None
        self._lost = 0  # lines that could not be written since the last that could
        self._torn = False  # the file ends inside a line
        self._writing: asyncio.Future[None] | None = None
        if options.journal == "-":
            self._file = io.FileIO(STDOUT, "wb", closefd=False)
        elif options.journal:
            try:
                self._file = io.FileIO(options.journal, "ab")
            except OSError as error:
                raise StartError(f"--journal {options.journal}: {error.strerror}") from None

    def on_transition(self, job: Job, was: JobState | None, reason: str) -> None:
        """A listener of a JobStore."""
        if self._file is not None:
            self.add(record(job, was, reason))

    def add(self, line: dict[str, object]) -> None:
        """One line, written soon. A field without a value is left out."""
        if self._file is not None:
            given = {key: value for key, value in line.items() if value is not None}
            self._lines.append(orjson.dumps(given, option=orjson.OPT_APPEND_NEWLINE))

    async def run(self) -> None:
        """Writes what has gathered until cancelled, in a thread: a full pipe must not stop the endpoint."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if self._lines:
                # Taken here and not in the thread: the event loop goes on appending.
                lines, self._lines = self._lines, []
                self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, lines))
                await asyncio.shield(self._writing)

    def _write(self, lines: list[bytes]) -> None:
        """Lines that cannot be written are lost, which is said once; the next ones are tried again."""
        if self._file is None or not lines:
            return
        rest = whole = b"".join([b"\n" if self._torn else b"", *lines])
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            if written := whole[: len(whole) - len(rest)]:
                self._torn = not written.endswith(b"\n")
            if not self._lost:
                _say(f"cannot be written: {error.strerror}")
            self._lost += len(lines)
            return
        self._torn = False
        if self._lost:
            _say(f"is written again; {self._lost} lines are missing")
            self._lost = 0

    async def close(self) -> None:
        """Writes the rest, after what a thread may still be writing."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        self._write(self._lines)
        if self._file is not None:
            self._file.close()


def _say(what: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"llmpod endpoint: the journal {what}\n")
