"""The ASGI caller, with applications that are a few lines long."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from llmpod.worker.engine.app.asgi import Broken, Exchange
from llmpod.worker.errors import JobError
from llmpod.worker.routes import multipart
from llmpod.worker.settings import Settings


class Tokens:
    """A source that makes a token per tick."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.closed = False

    async def events(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self.count):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(0.001)
        finally:
            self.closed = True


def app_with(tokens: Tokens) -> Starlette:
    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(tokens.events(), media_type="text/event-stream")

    async def echo(request: Request) -> JSONResponse:
        body = (await request.body()).decode()
        headers = {name: value for name, value in request.headers.items() if name.startswith("x-")}
        query = dict(request.query_params)
        return JSONResponse({"method": request.method, "query": query, "body": body, "headers": headers}, 418)

    async def broken(request: Request) -> JSONResponse:
        raise RuntimeError("broken")

    async def form(request: Request) -> JSONResponse:
        async with request.form() as fields:
            file: Any = fields["file"]
            content = await file.read()
            return JSONResponse(
                {
                    "file": base64.b64encode(content).decode(),
                    "name": file.filename,
                    "rest": [(name, value) for name, value in fields.multi_items() if name != "file"],
                }
            )

    return Starlette(
        routes=[
            Route("/stream", stream),
            Route("/echo", echo, methods=["GET", "POST"]),
            Route("/broken", broken),
            Route("/form", form, methods=["POST"]),
        ]
    )


async def test_method_query_headers_and_body_arrive_and_the_status_comes_back() -> None:
    headers = {"X-Request-Id": "job-1", "content-type": "text/plain"}
    async with Exchange(app_with(Tokens(0)), "POST", "/echo", query="a=b", headers=headers, body=b"hi") as exchange:
        await exchange.started()
        assert exchange.status == 418
        assert exchange.content_type == "application/json"
        body = await exchange.whole()
    assert body == b'{"method":"POST","query":{"a":"b"},"body":"hi","headers":{"x-request-id":"job-1"}}'


async def test_a_stream_arrives_whole_and_in_order() -> None:
    tokens = Tokens(50)
    async with Exchange(app_with(tokens), "GET", "/stream") as exchange:
        await exchange.started()
        stream = await exchange.whole()
    assert stream == b"".join(b"data: %d\n\n" % number for number in range(50))
    assert tokens.closed


async def test_leaving_early_is_a_disconnect_that_ends_the_source() -> None:
    tokens = Tokens(100_000)
    async with Exchange(app_with(tokens), "GET", "/stream") as exchange:
        await exchange.started()
        async for _ in exchange.pieces():
            break
    assert tokens.closed


async def test_an_event_tells_the_source_when_a_reader_waits() -> None:
    """What nobody waits for need not be made yet; and when the reader is gone, nobody stands still for ever."""
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(4):
            await exchange.wanted.wait()
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            seen.append(exchange.wanted.is_set())
        await exchange.wanted.wait()

    async with Exchange(app, "GET", "/") as exchange:
        read = b""
        async for piece in exchange.pieces():
            read += piece
            await asyncio.sleep(0.01)
            assert len(seen) == len(read), "the application ran ahead"
            if len(read) == 4:
                break
    assert read == b"0123"
    assert seen == [False] * 4


async def test_what_the_application_raises_is_raised_here() -> None:
    async with Exchange(app_with(Tokens(0)), "GET", "/broken") as exchange:
        await exchange.started()
        assert exchange.status == 500  # Starlette answers before it raises

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("broken")

    async with Exchange(broken, "GET", "/") as exchange:
        with pytest.raises(Broken) as caught:
            await exchange.whole()
    assert isinstance(caught.value.__cause__, ValueError)

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    async with Exchange(silent, "GET", "/") as exchange:
        with pytest.raises(Broken):
            await exchange.started()


async def test_a_form_is_rebuilt_from_base64() -> None:
    audio = bytes(range(256)) + b"\r\n--x\r\n"
    fields = {
        "file": base64.b64encode(audio).decode(),
        "filename": 'a"\r\nX: y/../b.wav',
        "model": "m",
        "timestamp_granularities[]": ["word", "segment"],
        "temperature": 0.5,
        "stream": True,
        "prompt": 'line\r\n\r\n--boundary "é"',
    }
    body, content_type = multipart.encode(fields, Settings())
    headers = {"content-type": content_type}
    async with Exchange(app_with(Tokens(0)), "POST", "/form", headers=headers, body=body) as exchange:
        answer = json.loads(await exchange.whole())
    assert base64.b64decode(answer["file"]) == audio
    assert answer["name"] == "aXy..b.wav"
    assert answer["rest"] == [
        ["model", "m"],
        ["timestamp_granularities[]", "word"],
        ["timestamp_granularities[]", "segment"],
        ["temperature", "0.5"],
        ["stream", "true"],
        ["prompt", fields["prompt"]],
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "file"),
        ({"file": 5}, "file"),
        ({"file": "@@"}, "file"),
        ({"file": "aGk="} | {'x"; name="file': "y"}, 'x"; name="file'),
    ],
)
def test_a_form_that_cannot_be_is_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(JobError) as caught:
        multipart.encode(body, Settings())
    assert caught.value.field == field
