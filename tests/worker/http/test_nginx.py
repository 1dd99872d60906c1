"""nginx in front of the worker's HTTP server and of a load balancer, with the documented configuration."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable

import aiohttp
import orjson
import pytest

from llmpod.endpoint import LoadBalancer
from tests import nginx
from tests.worker.http.serving import chunks_of, job, post, request, serving, wire
from tests.worker.http.test_load_balancer import SCRIPTED, START_S, balanced
from tests.worker.scripted import ScriptedEngine, until

pytestmark = pytest.mark.process

JOB = orjson.dumps(job())
JSON = "content-type: application/json"


async def test_what_is_no_answer_of_a_job_passes_as_it_is() -> None:
    async with serving(ScriptedEngine(), max_body_bytes=100_000) as served, nginx.in_front_of(served.port) as port:
        asked = {
            200: [post(JOB), request("GET", "/ping"), request("HEAD", "/ping")],
            204: [request("OPTIONS", "/native")],
            405: [request(method, "/native") for method in ("GET", "HEAD", "PUT", "DELETE")],
            413: [post(b"x" * 3_000_000), request("POST", "/native", b"", JSON, "transfer-encoding: chunked")],
            415: [post(b"{}").replace(b"application/json", b"text/plain")],
        }
        asked[413][1] += b"30d40\r\n" + b"x" * 200_000 + b"\r\n0\r\n\r\n"
        for status, requests in asked.items():
            for one in requests:
                passed, direct = [await wire(where, one) for where in (port, served.port)]
                assert passed.status == direct.status == status, (one[:200], passed, direct)
                for name in ("content-type", "allow", "retry-after", "content-length"):
                    assert passed.headers.get(name) == direct.headers.get(name), (one[:200], name)
                if status >= 400 and direct.content:
                    assert passed.error["code"] == direct.error["code"]


async def test_streams_are_not_collected_and_connections_to_the_worker_are_kept() -> None:
    async with serving(ScriptedEngine(tokens_per_s=100)) as served, nginx.in_front_of(served.port) as port:
        url = f"http://127.0.0.1:{port}/native"
        async with served.session.post(url, json=job(max_tokens=100, stream=True)) as response:
            begun = await response.content.readuntil(b"\n\n")
            served.engine.hung = True
            assert served.engine.unfinished == 1, "the first event is here, and the last one not yet made"
            served.engine.hung = False
            chunks = chunks_of(begun + await response.content.read())
        assert len(chunks) > 5
        before = served.server._server.server_state.connections.copy()
        for number in range(20):
            async with served.session.post(url, json=job(max_tokens=2, stream=number % 2 == 0)) as response:
                assert response.status == 200
                await response.read()
        assert served.server._server.server_state.connections == before
        assert len(before) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_nginx_ends_its_job(*, stream: bool) -> None:
    async with serving(ScriptedEngine(tokens_per_s=50)) as served, nginx.in_front_of(served.port) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(orjson.dumps(job(max_tokens=10_000, stream=stream))))
        await until(lambda: served.engine.unfinished)
        if stream:
            await reader.readuntil(b"data: ")
        writer.transport.abort()
        await until(served.at_rest)
        (end,) = served.ends()
        assert end["outcome"] == "cancelled"


async def load(port: int, ended: Callable[[], object], clients: int = 16) -> Counter[str]:
    """Clients that send one request after another, half of them streamed, until `ended()`; what each came to."""
    ends: Counter[str] = Counter()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        stream = number % 2 == 0
        while not ended():
            async with session.post(
                f"http://127.0.0.1:{port}/native", json=job(max_tokens=10, stream=stream)
            ) as response:
                try:
                    content = await response.read()
                except aiohttp.ClientPayloadError:
                    ends["cut"] += 1
                    continue
            if response.status == 200:
                assert content.endswith(b"data: [DONE]\n\n" if stream else b"}"), content[-200:]
            else:
                assert response.content_type == "application/json", content[:200]
            ends[str(response.status)] += 1

    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return ends


async def test_a_worker_that_drains_costs_no_request_while_another_one_is_there() -> None:
    async with (
        serving(ScriptedEngine(tokens_per_s=200)) as first,
        serving(ScriptedEngine(tokens_per_s=200)) as second,
        nginx.in_front_of(first.port, second.port) as port,
    ):
        loading = asyncio.create_task(load(port, first.task.done))
        await until(lambda: first.ends() and second.ends())
        first.server.stop()
        assert set(await loading) == {"200"}
        assert (await wire(port, post(JOB))).status == 200, "the one that is gone is not in the way"


async def ended_under_load(endpoint: LoadBalancer, port: int, by: signal.Signals) -> set[str]:
    """What requests come to while one of two workers ends by a signal."""
    worker = endpoint.worker((await endpoint.ready(2, START_S))[0])
    pid = endpoint.fleet.processes[worker.id].pid
    assert pid is not None
    loading = asyncio.create_task(load(port, lambda: worker.dead is not None))
    await until(lambda: worker.done > 5 and worker.in_flight)
    os.kill(pid, by)
    ends = await loading
    assert worker.exit_code == (0 if by is signal.SIGTERM else 128 + by)
    assert (await wire(port, post(JOB))).status == 200
    return set(ends)


async def test_workers_that_end_behind_a_load_balancer_and_nginx_leave_nobody_without_an_answer() -> None:
    async with balanced(SCRIPTED, workers=2) as endpoint, nginx.in_front_of(endpoint.port) as port:
        assert await ended_under_load(endpoint, port, signal.SIGTERM) <= {"200", "502", "503"}, "no stream is cut"
        assert await ended_under_load(endpoint, port, signal.SIGKILL) <= {"200", "502", "cut"}
        await until(lambda: endpoint.fleet.starts == 4)  # one in the place of each
