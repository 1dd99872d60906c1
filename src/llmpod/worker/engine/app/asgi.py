"""ASGI client: calls an application in this process, with streamed responses and without a socket.

    async with Exchange(app, "POST", "/v1/completions", body=b"{…}") as exchange:
        await exchange.started()
        exchange.status, exchange.content_type
        async for piece in exchange.pieces(): ...

Leaving the context before the answer is complete is the client's disconnect: the application ends what it was doing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextvars import Context
from types import TracebackType
from typing import Any, Self

Message = MutableMapping[str, Any]
App = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Broken(Exception):  # noqa: N818 - a state of the exchange
    """The application raised, or ended, before its response was complete; the cause is chained."""


BODY_END_S = 0.05
"""How long to wait for the end of a body once its source has ended; then what is there is sent without it."""
DISCONNECT_GRACE_S = 5.0
"""How long an application may take to notice a disconnect before its task is cancelled."""


class Exchange:
    """One request and its response."""

    def __init__(
        self,
        app: App,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        context: Context | None = None,
        continues: Callable[[], bool] = lambda: True,
    ) -> None:
        """`context`: what context variables hold in the application's tasks.

        `continues`: whether what is sent may be followed by more in the next iterations of the event loop.
        """
        self.status = 0
        self.headers: dict[str, str] = {}
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": None,
            "server": None,
        }
        self.wanted = asyncio.Event()  # the reader waits for the next piece, or has gone
        self._context = context
        self._continues = continues
        self._body = body
        self._body_read = False
        self._gone = asyncio.Event()  # the response is complete, or its reader has gone
        self._news = asyncio.Event()
        self._pending: list[bytes] = []
        self._complete = False
        self._task: asyncio.Task[None] | None = None

    @property
    def content_type(self) -> str:
        """The response's media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), context=self._context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gone.set()
        self.wanted.set()
        assert self._task is not None
        if not self._task.done():
            await asyncio.wait({self._task}, timeout=DISCONNECT_GRACE_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # marks it as retrieved: the reader got it, or has gone

    async def started(self) -> None:
        """Wait for status and headers.

        Raises:
            Broken: there will be none.
        """
        while not self.status:
            await self._next()

    async def pieces(self, source_ended: Callable[[], bool] = lambda: False) -> AsyncGenerator[bytes, None]:
        """Yield the body; what is ready comes in one piece.

        The application is never blocked; a producer that can merge its output reads `wanted`, which is set while this
        waits and cleared when something arrives. Once `source_ended` returns true, the rest comes in one piece.

        Raises:
            Broken: the body ends before its end.
        """
        while True:
            while not self._pending and not self._complete:
                await self._next()
            if self._pending:
                if source_ended():
                    await self._completed()
                pieces, self._pending = self._pending, []
                yield b"".join(pieces)
            elif self._complete:
                return

    async def whole(self) -> bytes:
        """The rest of the body."""
        return b"".join([piece async for piece in self.pieces()])

    async def _completed(self) -> None:
        """Wait for the end of the response."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BODY_END_S):
                await self._gone.wait()

    async def _next(self) -> None:
        """Wait until the application has sent something, and for what follows at once."""
        assert self._task is not None
        self._news.clear()
        self.wanted.set()
        if not self._task.done():
            await self._news.wait()
        if self._task.done() and not self._complete:
            raise Broken("the response is incomplete") from self._task.exception()
        seen = -1
        while seen != len(self._pending) and not self._complete and self._continues():
            seen = len(self._pending)
            await asyncio.sleep(0)

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._news.set()

    async def _receive(self) -> Message:
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            if body := message.get("body", b""):
                self._pending.append(bytes(body))
                if not self._gone.is_set():
                    self.wanted.clear()
            if not message.get("more_body", False):
                self._complete = True
                self._gone.set()
                self.wanted.set()
        self._news.set()
