"""The HTTP server around a scripted engine, over loopback: jobs, limits, health, disconnects, drain."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import psutil
import pytest

from llmpod.worker.http import body, response, server
from tests.worker.http.serving import Served, chunks_of, job, parsed, post, request, serving
from tests.worker.scripted import ScriptedEngine, text_of, until

pytestmark = pytest.mark.process

JOB = orjson.dumps(job())


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Served]:
    """A server for all tests that leave it as it was."""
    async with serving(ScriptedEngine()) as served:
        yield served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "DISCARD_S", 0.2)


# -- jobs --------------------------------------------------------------------------------------------------------------


async def test_a_native_job_is_answered_as_json_with_one_start_and_one_end(shared: Served) -> None:
    answer = await shared.send("POST", "/native", job(), x_request_id="mine")
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["text"] == text_of(64)
    job_id = answer.headers["x-request-id"]
    assert job_id.startswith("mine-")
    assert answer.json["request_id"] == job_id
    assert shared.events.end_of(job_id)["outcome"] == "ok"


async def test_a_native_stream_is_server_sent_events_that_add_up_and_end_with_done(shared: Served) -> None:
    answer = await shared.native(stream=True)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["x-accel-buffering"] == "no"
    chunks = chunks_of(answer.content)
    assert len(chunks) > 5, "it was not streamed"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == text_of(64)
    assert chunks[-1]["usage"]["output"] == 64


async def test_streams_share_a_limit_on_their_chunks_and_lose_no_text() -> None:
    async with serving(ScriptedEngine(tokens_per_s=200), max_stream_chunks_per_s=40) as served:
        answers = await asyncio.gather(*(served.native(stream=True) for _ in range(4)))
    for answer in answers:  # each takes 0.32 s, with 64 tokens, and may send a chunk each 0.1 s
        chunks = chunks_of(answer.content)
        assert 1 < len(chunks) < 20
        assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == text_of(64)


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a\u00e9", "<x>"])
async def test_an_id_that_is_none_is_replaced(shared: Served, given: str) -> None:
    answer = await shared.wire(post(JOB, f"x-request-id: {given}"))
    assert (answer.status, len(answer.headers["x-request-id"])) == (200, 32)


async def test_two_jobs_of_the_same_id_at_once_are_two_jobs(shared: Served) -> None:
    answers = await asyncio.gather(*(shared.send("POST", "/native", job(), x_request_id="same") for _ in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert len({answer.headers["x-request-id"] for answer in answers}) == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "status", "code"), [("fail", 500, "generation_failed"), ("bug", 500, "internal_error")]
)
async def test_a_job_that_fails_before_its_answer_has_its_status(
    shared: Served, prompt: str, status: int, code: str, *, stream: bool
) -> None:
    answer = await shared.native(prompt, stream=stream)
    assert (answer.status, answer.error["code"], answer.error["retryable"]) == (status, code, True)
    assert answer.headers["retry-after"] == "1"
    assert answer.error["job_id"] == answer.headers["x-request-id"]
    assert shared.events.end_of(answer.error["job_id"])["error"] == code


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"{", "invalid_input", None),
        (b"[1]", "invalid_input", "input"),
        (b"{}", "invalid_input", "input"),
        (b'{"prompt": "a"}', "invalid_input", "input"),
        (b'{"input": {"prompt": ""}}', "invalid_input", "prompt"),
        (b'{"input": {"prompt": "a", "promt": 1}}', "unknown_field", "promt"),
        (b'{"input": {"prompt": NaN}}', "invalid_input", None),
        (b'{"input": {"prompt": "\xff"}}', "invalid_input", None),
        (b"[" * 100_000, "invalid_input", None),
        (b'{"input": [' + b"0," * 30_000 + b"0]}", "invalid_input", None),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_field(
    shared: Served, content: bytes, code: str, param: str | None
) -> None:
    answer = await shared.wire(post(content))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    end = shared.events.end_of(answer.headers["x-request-id"])
    assert (end["outcome"], end["error"]) == ("rejected", code)


# -- HTTP --------------------------------------------------------------------------------------------------------------


async def test_methods_types_and_paths() -> None:
    async with serving(ScriptedEngine(), max_body_bytes=1000) as served:
        for method in ("GET", "PUT", "HEAD", "DELETE", "PATCH", "TRACE"):
            answer = await served.wire(request(method, "/native"))
            assert (answer.status, answer.headers["allow"]) == (405, "POST"), method
            assert bool(answer.content) == (method != "HEAD")
        options = await served.wire(request("OPTIONS", "/native"))
        assert (options.status, options.headers["allow"], options.content) == (204, "POST, OPTIONS", b"")
        length = f"content-length: {len(JOB)}"
        for headers in (
            ("content-type: text/plain", length),
            (length,),
            ("content-type: application/x-www-form-urlencoded", length),
            ("content-type: application/json", "content-encoding: gzip", length),
        ):
            answer = await served.wire(request("POST", "/native", JOB, *headers))
            assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type"), headers
        answer = await served.wire(
            request("POST", "/native", JOB, "content-type: Application/JSON; charset=utf-8", length)
        )
        assert answer.status == 200
        for garbage in (b"\x16\x03\x01\x02\x00\x01", request("GET", "//evil"), b"hello\r\n\r\n"):
            assert (await served.wire(garbage)).status == 400, garbage
        assert (await served.native()).status == 200


async def test_a_connection_serves_many_requests(shared: Served) -> None:
    reader, writer = await shared.connect()
    for _ in range(3):
        writer.write(post(JOB).replace(b"connection: close\r\n", b""))
        head = await reader.readuntil(b"\r\n\r\n")
        answer = parsed(head)
        assert answer.status == 200
        assert json.loads(await reader.readexactly(int(answer.headers["content-length"])))["text"] == text_of(64)
    writer.close()


async def test_small_writes_leave_at_once(shared: Served) -> None:
    _, writer = await shared.connect()
    connections = shared.server._server.server_state.connections
    mine = writer.get_extra_info("sockname")
    await until(lambda: mine in [one.client for one in connections])
    for connection in connections:
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()


async def test_a_body_that_is_too_large_is_a_413_before_it_is_read() -> None:
    async with serving(ScriptedEngine(), max_body_bytes=1000) as served:
        # 1 GB is declared and nothing of it is sent; of the second, more than sockets hold.
        declared = await served.wire(post(b"").replace(b"content-length: 0", b"content-length: 1000000000"))
        assert (declared.status, declared.error["code"]) == (413, "body_too_large")
        sent = await served.wire(post(b"x" * 3_000_000))
        assert (sent.status, sent.headers["connection"]) == (413, "close")
        chunked = request("POST", "/native", b"", "content-type: application/json", "transfer-encoding: chunked")
        answer = await served.wire(chunked + b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n")
        assert answer.status == 413
        waiting = await served.wire(
            post(b"").replace(b"content-length: 0", b"expect: 100-continue\r\ncontent-length: 2000")
        )
        assert waiting.status == 413, "without a 100 before it"
        assert served.engine.most_requests == 0


async def test_bodies_together_are_bounded() -> None:
    async with serving(ScriptedEngine(), max_body_bytes=1000) as served:
        served.server.application.budget._limit_bytes = 1500
        half = post(b"x" * 1000)[:-100]
        _, writer = await served.connect()
        writer.write(half)
        await until(lambda: served.server.application.budget.used_bytes)
        answer = await served.wire(post(b"x" * 900))
        assert (answer.status, answer.error["code"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        writer.close()
        await until(lambda: not served.server.application.budget.used_bytes)
        assert (await served.native()).status == 200


# -- slow and lost clients ---------------------------------------------------------------------------------------------


async def test_a_body_that_does_not_arrive_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.2)
    async with serving(ScriptedEngine()) as served:
        answer = await served.wire(post(JOB)[:-5])
        assert (answer.status, answer.error["code"]) == (408, "body_timeout")


@pytest.mark.parametrize("sent", [b"", b"POST /native HTTP/1.1\r\nhost: w\r\nx-slow: "])
async def test_headers_that_do_not_arrive_end_the_connection(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "HEADERS_S", 0.2)
    async with serving(ScriptedEngine()) as served:
        reader, writer = await served.connect()
        began = time.monotonic()
        writer.write(sent)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert 0.1 < time.monotonic() - began < 5
        assert (await served.native()).status == 200


async def test_blank_lines_do_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_S", 0.5)
    async with serving(ScriptedEngine()) as served:
        reader, writer = await served.connect()
        writer.write(b"HEAD /ping HTTP/1.1\r\nhost: w\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\r\n\r\n")
        async with asyncio.timeout(10):
            assert await reader.read() == b""


async def test_endless_headers_end_the_connection(shared: Served) -> None:
    reader, writer = await shared.connect()
    writer.write(b"GET / HTTP/1.1\r\nx-long: " + b"a" * 10_000_000)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_ends_its_job_at_once(*, stream: bool) -> None:
    async with serving(ScriptedEngine(tokens_per_s=50)) as served:
        reader, writer = await served.connect()
        writer.write(post(orjson.dumps(job(max_tokens=10_000, stream=stream))))
        await until(lambda: served.engine.unfinished)
        if stream:
            await reader.readuntil(b"data: ")
        writer.transport.abort()
        began = time.monotonic()
        await until(served.at_rest)
        assert time.monotonic() - began < 1
        (end,) = served.ends()
        assert end["outcome"] == "cancelled"


async def test_a_client_that_goes_while_its_body_arrives_leaves_nothing() -> None:
    async with serving(ScriptedEngine()) as served:
        _, writer = await served.connect()
        writer.write(post(JOB)[:-5])
        await until(lambda: served.server.application.budget.used_bytes)
        writer.transport.abort()
        await until(served.at_rest)
        (end,) = served.ends()
        assert (end["outcome"], served.engine.most_requests) == ("cancelled", 0)


def stalled(port: int) -> socket.socket:
    """A connection whose client has room for little and does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_does_not_read_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(response, "READER_S", 0.3)
    monkeypatch.setattr(server, "READER_S", 0.3)
    async with serving(ScriptedEngine(tokens_per_s=1_000_000)) as served:
        served.engine.max_model_len = 2_000_000
        client = stalled(served.port)
        asked = job(max_tokens=1_000_000, stream=True) if stream else job("size 9000000")
        client.sendall(post(orjson.dumps(asked)))
        await until(lambda: served.engine.most_requests)
        connections = len(psutil.Process().net_connections("tcp"))
        await until(served.at_rest)
        await until(lambda: len(psutil.Process().net_connections("tcp")) < connections)
        client.close()
        (end,) = served.ends()
        assert end["outcome"] == ("cancelled" if stream else "ok")
        assert (await served.native()).status == 200


# -- overload, health, shutdown ----------------------------------------------------------------------------------------


async def test_more_requests_than_the_worker_holds_are_429_and_health_is_not() -> None:
    async with serving(ScriptedEngine(tokens_per_s=200), max_concurrency=2) as served:
        running = [asyncio.create_task(served.native(max_tokens=200)) for _ in range(2)]
        await until(lambda: served.engine.unfinished == 2)
        answer = await served.native()
        assert (answer.status, answer.error["code"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await served.send("GET", "/ping")).status == 200
        assert [(await one).status for one in running] == [200, 200]
        assert (await served.native()).status == 200


async def test_a_request_that_waits_too_long_for_a_slot_is_a_429() -> None:
    async with serving(ScriptedEngine(tokens_per_s=100, max_num_seqs=1), max_queue_wait=0.05) as served:
        running = [asyncio.create_task(served.native(max_tokens=100)) for _ in range(2)]
        await until(lambda: served.engine.unfinished == 2)
        assert (await served.native()).status == 429
        assert [(await one).status for one in running] == [200, 200]


async def test_a_job_above_its_time_is_a_504() -> None:
    async with serving(ScriptedEngine(tokens_per_s=10), max_job_seconds=0.2) as served:
        answer = await served.native(max_tokens=1000)
        assert (answer.status, answer.error["code"]) == (504, "timeout")


@pytest.mark.parametrize("path", ["/ping", "/alive"])
async def test_ping_is_ready_then_ending_and_costs_no_log_line(path: str) -> None:
    async with serving(ScriptedEngine(tokens_per_s=100), health_check_path=path) as served:
        assert (await served.send("GET", path)).status == 200
        assert (await served.send("HEAD", path)).content == b""
        running = asyncio.create_task(served.native(max_tokens=100))
        await until(lambda: served.engine.unfinished)
        served.server.stop()
        await until(lambda: served.events.named("draining"))
        assert (await served.send("GET", path)).status == 503
        refused = await served.native()
        assert (refused.status, refused.error["code"]) == (503, "worker_stopping")
        assert (await running).status == 200
        assert await served.task == 0
        assert len(served.events.named("start")) == 2


async def test_a_drain_that_lasts_too_long_ends_the_rest_as_retryable() -> None:
    async with serving(ScriptedEngine(tokens_per_s=100), drain_seconds=0.3) as served:
        jobs = [asyncio.create_task(served.native(max_tokens=50_000, stream=stream)) for stream in (False, True)]
        await until(lambda: served.engine.unfinished == 2)
        _, writer = await served.connect()
        writer.write(post(JOB)[:-5])  # a third one's body is on its way
        await until(lambda: len(served.server.application.requests) == 3)
        served.server.stop()
        whole, streamed = [await one for one in jobs]
        assert (whole.status, whole.error["code"], whole.error["retryable"]) == (503, "worker_stopping", True)
        last = json.loads(streamed.content.decode().strip().rpartition("data: ")[2])
        assert (streamed.status, last["failure"]["code"]) == (200, "worker_stopping")
        assert b"[DONE]" not in streamed.content
        assert await served.task == 0
        assert [end["error"] for end in served.ends()] == ["worker_stopping"] * 3


async def test_a_dead_engine_answers_everybody_and_the_worker_exits_1() -> None:
    async with serving(ScriptedEngine(tokens_per_s=100)) as served:
        jobs = [asyncio.create_task(served.native(max_tokens=50_000, stream=stream)) for stream in (False, True)]
        await until(lambda: served.engine.unfinished == 2)
        served.engine.die()
        whole, streamed = [await one for one in jobs]
        assert (whole.status, whole.error["code"], whole.error["retryable"]) == (503, "engine_dead", True)
        assert b"engine_dead" in streamed.content
        assert await served.task == 1


async def test_jobs_that_come_and_go_leave_nothing() -> None:
    """Clients of every kind at once; each answer is whole or the client has gone."""
    async with serving(ScriptedEngine(tokens_per_s=2000, max_num_seqs=8), max_concurrency=64) as served:

        async def client(number: int) -> Any:
            if number % 4 == 0:
                _, writer = await served.connect()
                writer.write(post(orjson.dumps(job(max_tokens=5000, stream=number % 8 == 0))))
                await asyncio.sleep(number / 1000)
                writer.transport.abort()
                return 499
            answer = await served.native(max_tokens=100, stream=number % 2 == 0)
            return answer.status

        statuses = await asyncio.gather(*map(client, range(64)))
        assert set(statuses) == {499, 200}
        await until(served.at_rest)


async def test_small_requests_of_many_connections() -> None:
    async with serving(ScriptedEngine(), max_concurrency=500) as served:
        answers = await asyncio.gather(*(served.wire(post(JOB)) for _ in range(200)))
        assert {answer.status for answer in answers} == {200}
