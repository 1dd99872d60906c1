"""Request bodies: read within limits of size, time and memory, then parsed as JSON.

A body is refused by its declared length before any of it is read, and a chunked one as soon as it is too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

import orjson

from llmpod.worker.errors import Code, JobError
from llmpod.worker.http import form
from llmpod.worker.http.json_size import JsonSize
from llmpod.worker.http.time_limit import time_limit
from llmpod.worker.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BODY_S = 60.0
"""How long a body may take to arrive."""
BUDGET_BODIES = 16
"""All bodies together may have the bytes of so many of the largest kind."""
DISCARD_S = 2.0
"""For how long a refused body is read to nowhere: closing with unread data would take the answer back."""
_JSON = ("application/json",)
_FORM = ("multipart/form-data", "application/json")
LARGE_BYTES = 100_000
"""A larger body is parsed in a thread."""


class Gone(Exception):  # noqa: N818 - a state of the connection
    """The client has closed the connection."""


class Budget:
    """Bytes of bodies in memory, over all requests."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Account for more bytes.

        Raises:
            JobError: there is no room for them now.
        """
        if self.used_bytes + size_bytes > self._limit_bytes:
            raise JobError(Code.OVERLOADED, "The worker is busy reading other requests' bodies.")
        self.used_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Return bytes."""
        self.used_bytes -= size_bytes


class Body:
    """The body of one request; its bytes count in the budget until `release`."""

    def __init__(self, receive: Receive, headers: Mapping[str, str], settings: Settings, budget: Budget) -> None:
        """`headers`: names in lower case."""
        self._receive = receive
        self._headers = headers
        self._limit_bytes = settings.max_body_bytes
        self._max_values = settings.max_job_values
        self._budget = budget
        self._held_bytes = 0
        self.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers

    async def value(self, form_numbers: Collection[str] | None = None) -> Any:
        """Read and parse the body; None if there is none. `form_numbers`: of a route that takes a form, see form.py.

        Raises:
            JobError: it is too large, too slow, of another type, compressed, or malformed.
            Gone: the client has gone.
        """
        declared = self._headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._limit_bytes:
            raise self._too_large()
        if self.complete:
            return None
        media_type = self._check_type(_FORM if form_numbers is not None else _JSON)
        try:
            async with time_limit(BODY_S):
                is_json = media_type == "application/json"
                content = await self._read(JsonSize(self._max_values) if is_json else None)
        except TimeoutError:
            raise JobError(Code.BODY_TIMEOUT, f"The body did not arrive within {BODY_S:g} s.") from None
        if not is_json and form_numbers is not None:
            return await form.parse(content, self._headers["content-type"], form_numbers)
        try:
            large = len(content) > LARGE_BYTES
            return await asyncio.to_thread(orjson.loads, content) if large else orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise JobError(Code.INVALID_INPUT, f"The body is not JSON: {str(error)[:200]}.") from None

    async def discard(self) -> None:
        """Read what is left of a refused body for a moment, so that the client gets to read the answer."""
        if "expect" in self._headers:  # it has not been sent, and will not be
            return
        try:
            async with asyncio.timeout(DISCARD_S):
                while not self.complete:
                    message = await self._receive()
                    self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        except TimeoutError:
            return

    def release(self) -> None:
        """Return the body's bytes to the budget."""
        self._budget.give(self._held_bytes)
        self._held_bytes = 0

    def _check_type(self, accepted: tuple[str, ...]) -> str:
        """The media type. A browser sends other ones than JSON to any address, also this machine's, without asking."""
        media_type = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in accepted:
            found = f"not {media_type[:100]}" if media_type else "and has no Content-Type"
            raise JobError(Code.UNSUPPORTED_MEDIA_TYPE, f"The body must be {' or '.join(accepted)}, {found}.")
        encoding = self._headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise JobError(Code.UNSUPPORTED_MEDIA_TYPE, f"The body must not be compressed ({encoding[:100]}).")
        return media_type

    async def _read(self, size: JsonSize | None) -> bytes:
        pieces = []
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            piece = message.get("body", b"")
            self._budget.take(len(piece))
            self._held_bytes += len(piece)
            if self._held_bytes > self._limit_bytes:
                raise self._too_large()
            if size is not None:
                size.feed(piece)
            pieces.append(piece)
            self.complete = not message.get("more_body", False)
        return b"".join(pieces)

    def _too_large(self) -> JobError:
        return JobError(
            Code.BODY_TOO_LARGE,
            f"The body has more than {self._limit_bytes} bytes.",
            limit=self._limit_bytes,
        )
