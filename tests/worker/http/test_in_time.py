"""What arrived in time is answered: while the process was suspended or starved, and in a drain's last moment."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from llmpod.worker.http import body, response, server
from tests.worker.http.serving import job, parsed, post, serving
from tests.worker.http.test_http import stalled
from tests.worker.scripted import ScriptedEngine, until

pytestmark = pytest.mark.process

LIMIT_S = 0.6
JOB = post(orjson.dumps(job()))


def suspend(just_before: Callable[[], object] | None = None) -> None:
    """Keep the event loop from running until the limit is over. `just_before`: runs in the same turn as its timer."""
    if just_before is not None:
        asyncio.get_running_loop().call_later(0.01, just_before)
    time.sleep(1.5 * LIMIT_S)


async def test_a_request_that_came_before_the_loop_looked_again_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_S", LIMIT_S)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", LIMIT_S)
    async with serving(ScriptedEngine()) as served:
        reader, writer = await served.connect()
        await until(lambda: served.server._server.server_state.connections)
        sock = writer.get_extra_info("socket")
        for _ in range(2):  # a connection of which nothing is known yet, then one that is kept
            suspend(lambda: socket.socket.send(sock._sock, JOB.replace(b"connection: close\r\n", b"")))
            answer = parsed(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(int(answer.headers["content-length"]))
            assert answer.status == 200
        assert await reader.read() == b"", "an idle one still ends"


async def test_a_body_that_came_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", LIMIT_S)
    async with serving(ScriptedEngine()) as served:
        reader, writer = await served.connect()
        writer.write(JOB[:-5])
        await until(lambda: served.server.application.budget.used_bytes)
        writer.write(JOB[-5:])
        suspend()
        assert parsed(await reader.read()).status == 200


async def test_a_client_that_has_read_keeps_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "READER_S", LIMIT_S)
    async with serving(ScriptedEngine(tokens_per_s=1_000_000)) as served:
        served.engine.max_model_len = 2_000_000
        client = stalled(served.port)
        client.sendall(post(orjson.dumps(job(max_tokens=1_000_000, stream=True))))
        connections: Any = served.server._server.server_state.connections
        await until(lambda: any(connection.flow.write_paused for connection in connections))
        await asyncio.sleep(0.1)  # the next chunk waits for room
        read: list[bytes] = []
        reading = threading.Thread(target=lambda: read.append(read_all(client)))
        reading.start()
        suspend()
        await asyncio.to_thread(reading.join)
        assert read[0].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_what_arrives_just_before_the_server_closes_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[socket.socket] = []
    stop_listening, shut_down = server.Server.stop_listening, server.Server.shutdown

    async def send_then_stop(self: server.Server, listeners: list[socket.socket]) -> None:
        for _ in range(20):  # they wait in the backlog
            client = socket.create_connection(("127.0.0.1", served.port))
            client.sendall(JOB)
            sent.append(client)
        await stop_listening(self, listeners)

    async def send_then_shut_down(self: server.Server, sockets: list[socket.socket] | None = None) -> None:
        kept.sendall(JOB)
        sent.append(kept)
        await shut_down(self, sockets)

    monkeypatch.setattr(server.Server, "stop_listening", send_then_stop)
    monkeypatch.setattr(server.Server, "shutdown", send_then_shut_down)
    async with serving(ScriptedEngine()) as served:
        kept = socket.create_connection(("127.0.0.1", served.port))
        kept.sendall(b"HEAD /ping HTTP/1.1\r\nhost: worker\r\n\r\n")
        await until(lambda: served.server._server.server_state.total_requests == 1)
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert await served.stop() == 0
        answers = [parsed(await asyncio.to_thread(read_all, client)) for client in sent]
    assert [answer.status for answer in answers] == [503] * 21
    assert {answer.headers["connection"] for answer in answers} == {"close"}


def read_all(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(1 << 16), b""))
