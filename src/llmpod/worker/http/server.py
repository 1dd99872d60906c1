"""uvicorn as the worker's HTTP server, with an engine that starts and ends with it.

uvicorn's own handling of signals is not used: SIGTERM drains here (docs/http.md). Its HTTP protocol has no limits for
request headers and waits for ever for a client that does not read; `Protocol` has.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmpod.worker.errors import Code, JobError
from llmpod.worker.http.application import Application
from llmpod.worker.http.loading import BACKLOG, HEADERS_S, LoadingServer
from llmpod.worker.http.response import READER_S
from llmpod.worker.http.time_limit import UNREAD_S
from llmpod.worker.lifecycle import Lifecycle
from llmpod.worker.worker_start import WorkerStart

HEAD_BYTES = 1 << 16
"""Most bytes of a request's first line and headers."""
KEEP_ALIVE_S = 75
"""How long a connection may be idle: longer than proxies keep theirs, so that none sends into a closing one."""
LINGER_STEPS, LINGER_STEP_S = 25, 0.02
"""For how long idle connections still get a 503 when all requests have been answered."""
END_S = 2
"""How long connections may take to close at the end."""


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with bounds for headers and for readers, and what `Application` needs of it."""

    _late: asyncio.TimerHandle | None = None  # runs while headers are expected
    _reading: asyncio.TimerHandle | None = None  # runs while a complete answer is not read
    _head_bytes = 0
    _lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watching: set[Callable[[], None]] = set()
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_headers()
        self._stop_reading()
        super().connection_lost(exc)
        self._lost = True
        for gone in tuple(self._watching):
            gone()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        idle = self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None
        if idle and self._late is None:  # blank lines before a request line, which the parser skips
            self._expect_headers()
        self._head_bytes = 0 if self._late is None else self._head_bytes + len(data)
        if self._head_bytes > HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stop_reading()
        self.scope["extensions"] = {
            "llmpod": {"abort": self.transport.abort, "paused": self._paused, "watch": self._watch}
        }
        if self._late is None:
            self._expect_headers()

    def _paused(self) -> bool:
        return bool(self.flow.write_paused)

    def _watch(self, gone: Callable[[], None]) -> Callable[[], None]:
        """Have `gone` called when the connection is lost; returns what ends that."""
        self._watching.add(gone)
        if self._lost:
            self.loop.call_soon(gone)
        return partial(self._watching.discard, gone)

    def on_headers_complete(self) -> None:
        self._have_headers()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_reader(None)

    def end_with_response(self) -> None:
        """Close the connection when the response that is being made is complete."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        if not self._unread():
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Close the connection: at once if it is idle, else when the request that has arrived is answered."""
        if self._unread() or (self._late is not None and self._head_bytes):
            self._head_bytes = 0  # of headers that have begun to arrive, some more must within UNREAD_S
            self.loop.call_later(UNREAD_S, self.shutdown)
        else:
            super().shutdown()

    def _unread(self) -> bool:
        """Whether something has arrived that the event loop has not read yet: it may be a request that was in time."""
        if self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def _await_reader(self, before_bytes: int | None) -> None:
        """Drop the connection if its client reads nothing of a complete answer for READER_S."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes and unread_bytes == before_bytes:
            self.transport.abort()
        elif unread_bytes:
            self._reading = self.loop.call_later(READER_S, self._await_reader, unread_bytes)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _expect_headers(self, seconds: float | None = None) -> None:
        self._late = self.loop.call_later(HEADERS_S if seconds is None else seconds, self._headers_late)

    def _headers_late(self) -> None:
        if self._unread():
            self._expect_headers(UNREAD_S)
        else:
            self.transport.abort()

    def _have_headers(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """uvicorn's server without its handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def stop_listening(self, listeners: Iterable[socket.socket]) -> None:
        """Close the listening sockets, whose backlogs are accepted first: the kernel would reset what waits in them."""
        loop = asyncio.get_running_loop()
        accepted = []
        for listener in listeners:
            with contextlib.suppress(OSError):  # nobody waits any more
                while True:
                    client, _ = listener.accept()
                    client.setblocking(False)
                    accepted.append(client)
        for server in self.servers:
            server.close()
        connecting = (loop.connect_accepted_socket(self._protocol, client) for client in accepted)
        await asyncio.gather(*connecting, return_exceptions=True)  # a client may have gone already

    def _protocol(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)


class HttpServer(Lifecycle):
    """Serves requests from the engine's start until a signal or a failure of the engine."""

    def __init__(self, start: WorkerStart, loading: LoadingServer) -> None:
        super().__init__(start)
        self.application: Application  # set by `serve`, as is the next
        self._server: Server
        self._loading_server = loading
        self._ending = asyncio.Event()

    async def serve(self) -> None:
        """Answer requests until `stop`; then drain."""
        self.application = Application(self.worker)
        config = uvicorn.Config(
            self.application,
            interface="asgi3",
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=END_S,
        )
        server = self._server = Server(config)
        sockets = self._loading_server.hand_over()
        serving = asyncio.create_task(server.serve(sockets))
        ending = asyncio.create_task(self._ending.wait())
        self.worker.emit(
            "listening", addresses=[_address(listener) for listener in sockets], most=self.application.most
        )
        try:
            await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
            await self._drain(sockets)
        finally:
            ending.cancel()
            server.should_exit = True
            await serving

    def stop(self) -> None:
        """Take no further requests."""
        self.worker.draining = True
        self._ending.set()

    def fail(self, failure: JobError) -> None:
        """As the base class; running requests fail at once, so that they can be sent again to another worker."""
        super().fail(failure)
        self.application.interrupt(failure)

    async def _drain(self, sockets: list[socket.socket]) -> None:
        seconds = 0.0 if self.failure is not None else self.worker.settings.drain_seconds
        if self.application.requests:
            self.worker.emit("draining", jobs=len(self.application.requests), seconds=seconds)
        stopping = JobError(Code.WORKER_STOPPING, "RunPod stopped this worker before the request was answered.")
        for connection in self._server.server_state.connections:
            cast(Protocol, connection).end_with_response()
        await self.application.drain(seconds, self.failure or stopping)
        await self._server.stop_listening(sockets)
        for _ in range(LINGER_STEPS):  # who is about to use an idle connection gets an answer
            if self._server.server_state.connections:
                await asyncio.sleep(LINGER_STEP_S)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(start: WorkerStart, loading: LoadingServer) -> int:
    """Serve requests until RunPod stops the worker. Returns the exit status.

    Raises:
        StartError: the engine could not be started.
    """
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a connection is one
    server = HttpServer(start, loading)
    server.owns_process = True
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_shutdown)
    uvloop.run(server.run())  # as vLLM's own server does
    return 0
