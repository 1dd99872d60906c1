"""Counts the values of a JSON text while it arrives: what has too many is refused before it is parsed.

A parser holds Python's lock for as long as it takes: a second for 30 MB of `"":0,`, and a few milliseconds for what
MAX_JOB_VALUES allows.
"""

from __future__ import annotations

from llmpod.worker.errors import Code, JobError


class JsonSize:
    """A lower bound of the number of values: commas outside of texts. Reads any bytes, also what is not JSON."""

    def __init__(self, max_values: int) -> None:
        """`max_values`: MAX_JOB_VALUES."""
        self.commas = 0
        self.quotes = 0
        self._max_values = max_values
        self._escape = b""  # a backslash whose escaped character has not arrived
        self._in_text = False

    def feed(self, piece: bytes) -> None:
        """Count in the next piece.

        Raises:
            JobError: there are more values than the worker accepts.
        """
        piece = (self._escape + piece).replace(b"\\\\", b"")
        self._escape = piece[-1:] if piece.endswith(b"\\") else b""
        piece = piece.removesuffix(b"\\").replace(b'\\"', b"")
        self.quotes += piece.count(b'"')
        if self.quotes > 4 * (self._max_values + 1):  # a value has at most one key beside it
            raise self._too_many()
        parts = piece.split(b'"')
        self.commas += b"".join(parts[self._in_text :: 2]).count(b",")
        self._in_text ^= len(parts) % 2 == 0
        if self.commas > self._max_values:
            raise self._too_many()

    def _too_many(self) -> JobError:
        message = f"The body has more than {self._max_values} values; this worker accepts no more."
        return JobError(Code.INVALID_INPUT, message)
