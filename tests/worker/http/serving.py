"""The HTTP server in this event loop, on a port of its own, and requests written by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp

from llmpod.worker.http.loading import LoadingServer
from llmpod.worker.http.server import HttpServer
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, Json
from tests.worker.scripted import ScriptedStart, end, exit_status, until


class Answer(NamedTuple):
    """A response as it stood on the wire."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        return error


def parsed(wire: bytes) -> Answer:
    head, _, content = wire.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split(" ")[1]), headers, content)


class Served:
    """A running HTTP server with its worker."""

    def __init__(self, server: HttpServer, task: asyncio.Task[int], events: Events, port: int) -> None:
        self.server = server
        self.task = task
        self.events = events
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.worker = server.worker
        self.engine: Any = server.worker.engine
        self.session = aiohttp.ClientSession()

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request through a client."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.url + path, json=body, headers=named) as response:
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read())

    async def native(self, prompt: str = "hello", max_tokens: int = 64, **fields: Any) -> Answer:
        """A native job."""
        return await self.send("POST", "/native", job(prompt, max_tokens, **fields))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def wire(self, request: bytes) -> Answer:
        """A request as it stands, and what comes back until the server closes the connection."""
        return await wire(self.port, request)

    def ends(self) -> list[Json]:
        return self.events.named("end")

    def at_rest(self) -> bool:
        """Nothing is held anywhere."""
        app = self.server.application
        slots = self.worker.slots
        held = (len(app.requests), len(app.admitted), app.budget.used_bytes, slots.in_use, slots.waiting)
        return held == (0, 0, 0, 0, 0) and self.engine.unfinished == 0

    async def stop(self) -> int:
        self.server.stop()
        return await asyncio.wait_for(asyncio.shield(self.task), 30)


async def wire(port: int, request: bytes) -> Answer:
    """A request as it stands, to whoever listens there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = parsed(await reader.read())
    writer.close()
    return answer


def job(prompt: str = "hello", max_tokens: int = 64, **fields: Any) -> Json:
    return {"input": {"prompt": prompt, "sampling_params": {"max_tokens": max_tokens}} | fields}


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: worker", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def post(body: bytes, *headers: str, path: str = "/native") -> bytes:
    return request("POST", path, body, "content-type: application/json", f"content-length: {len(body)}", *headers)


def chunks_of(content: bytes) -> list[Any]:
    """The objects of a native stream, which must end with [DONE]."""
    *events, done, rest = content.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@asynccontextmanager
async def serving(engine: Any, events: Events | None = None, **settings: Any) -> AsyncIterator[Served]:
    """The server in this event loop. Leaving stops it and checks that nothing is left."""
    events = events or Events()
    chosen = Settings(**{"max_tokens_min": 1, "max_tokens_max": 0, "port": 0} | settings)
    loading = LoadingServer(chosen, "127.0.0.1")
    loading.start()
    start: Any = ScriptedStart(Worker(chosen, engine, events.emit))
    server = HttpServer(start, loading)
    task = asyncio.create_task(exit_status(server))
    await until(lambda: events.named("listening") or task.done())
    served = Served(server, task, events, int(events.named("listening")[0]["addresses"][0].rpartition(":")[2]))
    try:
        yield served
        await until(served.at_rest)
        if not task.done():
            assert await served.stop() == 0
    finally:
        await served.session.close()
        await end(task)
