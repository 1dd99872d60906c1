"""HTTP response of one request, made of the replies of its job."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from llmpod.worker.errors import Code
from llmpod.worker.http.body import Body
from llmpod.worker.http.time_limit import time_limit
from llmpod.worker.jobs.job_log import JobRecord
from llmpod.worker.plain_json import dumps
from llmpod.worker.routes.answer import Reply

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

READER_S = 30.0
"""How long a client may take to read what has been written, before the next piece is."""
RETRY_AFTER_S = 1
"""Of errors that name no other time."""
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of a stream. The last one keeps nginx from collecting it."""


class SlowReaderError(Exception):
    """The client does not read its answer."""


class Response:
    """Writes one response. `reply` takes the job's replies as they come, `finish` ends it."""

    def __init__(
        self, send: Send, record: JobRecord, body: Body, *, native: bool, paused: Callable[[], bool] = lambda: True
    ) -> None:
        """`body`: the request's. `native`: a stream's chunks are objects; those of vLLM's routes are events already.

        `paused`: whether `send` may wait, because the client has not read what was written.
        """
        self.started = False
        self.ended = False
        self.closes = False  # whether the connection ends with it
        self._send_message = send
        self._paused = paused
        self._record = record
        self._body = body
        self._native = native
        self._failed = False

    async def reply(self, reply: Reply) -> None:
        """Write one reply of the job: part of a stream, the whole answer, or the error.

        Raises:
            SlowReaderError: the client does not read what was written.
        """
        if isinstance(reply, dict) and isinstance(reply.get("error"), str):
            self._failed = True
            if not self.started:
                await self._error(orjson.loads(reply["error"]))
        elif isinstance(reply, str) and self._record.streaming:
            await self._events(reply.encode())
        elif isinstance(reply, dict) and self._native and self._record.stream:
            if self.started or "failure" not in reply:  # before the stream has begun, a failure is a status
                await self._events(b"data: " + dumps(reply) + b"\n\n")
        else:
            await self._answer(reply)

    async def finish(self) -> None:
        """End a stream; does nothing where the response is complete."""
        if self.started and not self.ended:
            self.ended = True
            done = b"data: [DONE]\n\n" if self._native and not self._failed else b""
            await self._send({"type": "http.response.body", "body": done, "more_body": False})

    async def whole(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        """Write a whole response. If the request's body has not been read, the connection ends with it, too."""
        if status != 204:
            headers = headers | {"content-length": str(len(content))}
        if self.closes or not self._body.complete:
            headers = headers | {"connection": "close"}
        await self._start(status, headers)
        if not self._body.complete:
            await self._send({"type": "http.response.body", "body": content, "more_body": True})
            content = b""
            await self._body.discard()
        self.ended = True
        await self._send({"type": "http.response.body", "body": content, "more_body": False})

    async def _answer(self, reply: Reply) -> None:
        headers = {"content-type": self._record.content_type or "application/json"}
        if isinstance(reply, str):
            await self.whole(200, headers, reply.encode())
        elif reply.keys() == {"content_type", "base64"}:
            await self.whole(200, headers, base64.b64decode(reply["base64"]))
        elif reply.keys() == {"status"}:
            await self.whole(reply["status"], {})
        else:
            await self.whole(200, headers, dumps(reply))

    async def _error(self, error: dict[str, Any]) -> None:
        """Write an error object of `JobError.as_dict` in the form that OpenAI's and Anthropic's clients read."""
        status = 429 if error["code"] == Code.OVERLOADED.value.code else error["status"]
        headers = {"content-type": "application/json"}
        if "allow" in error.get("details", {}):
            headers["allow"] = ", ".join(error["details"]["allow"])
        if error["retryable"]:
            headers["retry-after"] = str(error.get("details", {}).get("retry_after_s", RETRY_AFTER_S))
        own = {name: error[name] for name in ("retryable", "hint", "job_id") if name in error}
        native = {
            "message": error["message"],
            "type": error["type"],
            "param": error.get("field"),
            "code": error["code"],
        }
        shown = error.get("error", native)
        if status == 429 and "error" in error:
            shown = shown | {"type": "RateLimitError", "code": status}
        content = {"error": shown | own}
        if self._record.route.startswith("/v1/messages"):
            content = {"type": "error"} | content
        await self.whole(status, headers, dumps(content))

    async def _events(self, events: bytes) -> None:
        if not self.started:
            await self._start(200, EVENTS)
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.started = True
        named = headers | {"x-request-id": self._record.id}
        pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if not self._paused():  # a timer per chunk costs as much as the chunk's event
            await self._send_message(message)
            return
        try:
            async with time_limit(READER_S):
                await self._send_message(message)
        except TimeoutError:
            raise SlowReaderError from None
