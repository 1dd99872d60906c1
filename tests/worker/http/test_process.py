"""The HTTP worker as processes: the real engine once, signals and deaths under load, nobody without an answer."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest

from tests.worker.http.serving import job
from tests.worker.http.test_loading import free_port
from tests.worker.processes import REPOSITORY, WorkerProcess, environment, gone
from tests.worker.scripted import until

pytestmark = pytest.mark.process

CHAT = {"messages": [{"role": "user", "content": "How do I write a CV?"}], "max_tokens": 200, "ignore_eos": True}


class Process(WorkerProcess):
    """A worker process that serves HTTP."""

    port: int
    health: int

    async def ping(self) -> int | None:
        """The health check's status; None: nobody listens."""
        try:
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.health)
                writer.write(b"GET /ping HTTP/1.1\r\nhost: w\r\nconnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
                return int(answer.split()[1]) if answer else None
        except OSError:
            return None


@asynccontextmanager
async def process(*command: str, **variables: str) -> AsyncIterator[Process]:
    port, health = free_port(), free_port()
    variables = {"PORT": str(port), "PORT_HEALTH": str(health), "MODEL_NAME": "llmpod-demo"} | variables
    started = Process(
        await asyncio.create_subprocess_exec(
            *command,
            cwd=REPOSITORY,
            env=environment() | {"PYTHONPATH": str(REPOSITORY / "src")} | variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 24,
            start_new_session=True,
        )
    )
    started.port, started.health = port, health
    try:
        yield started
    finally:
        if started.process.returncode is None:
            os.killpg(started.process.pid, signal.SIGKILL)
        await started.reader


async def answers(running: Process, path: str, body: Any, count: int) -> Counter[str]:
    """So many clients, each until it is refused; what their last request came to."""
    ends: Counter[str] = Counter()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    asked = body | {"stream": number % 2 == 0} if "messages" in body else body
                    async with session.post(f"http://127.0.0.1:{running.port}{path}", json=asked) as response:
                        content = await response.read()
                except aiohttp.ClientError as error:
                    ends[type(error).__name__] += 1
                    return
                if response.status != 200:
                    ends[str(response.status)] += 1
                    return
                if b'"error"' in content:
                    ends["error event"] += 1
                    return
                assert b"[DONE]" in content or b'"usage"' in content

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, number) for number in range(count)))
    return ends


@pytest.mark.engine
@pytest.mark.slow
async def test_the_real_worker_from_its_first_ping_to_the_death_of_its_engine() -> None:
    async with process(sys.executable, "-u", str(REPOSITORY / "handler.py")) as running:
        seen: list[int | None] = []
        began = time.monotonic()
        while not seen or seen[-1] != 200:
            status = await running.ping()
            seen += [status] if not seen or seen[-1] != status else []
            assert running.process.returncode is None, running.lines
            assert time.monotonic() - began < 150, running.lines
            await asyncio.sleep(0.02)
        assert seen in ([None, 204, 200], [204, 200]), seen
        mode = await running.event("serve_mode")
        assert (mode["mode"], mode["reason"]) == ("http", "PORT_HEALTH is set")

        curl = await asyncio.create_subprocess_exec(
            *("curl", "-sN", "-i", f"http://127.0.0.1:{running.port}/v1/chat/completions"),
            *("-H", "Content-Type: application/json", "-d", '{"messages": [{"role": "user", "content": "Hi"}],'),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await curl.communicate()
        assert b"400 Bad Request" in said, "the JSON was cut"

        family = running.family()
        load = asyncio.create_task(answers(running, "/v1/chat/completions", CHAT, 16))
        await until(lambda: len(running.events) > 40, 60)
        last = [child for child in family[1:] if not child.children()]
        max(last, key=lambda child: child.memory_info().rss).kill()  # the one that holds the model
        ends = await load
        # An answer that was being made ends with a status or an error event; after that nobody listens.
        assert ends.total() == 16
        assert set(ends) <= {"503", "500", "error event", "ClientConnectorError", "ServerDisconnectedError"}, ends
        assert ends["503"] + ends["500"] + ends["error event"] >= 1, ends
        assert await running.end() == 1
        await gone(family)
        lines = [event for event in running.events if event["event"] in ("start", "end")]
        started = Counter(event["request_id"] for event in lines if event["event"] == "start")
        ended = Counter(event["request_id"] for event in lines if event["event"] == "end")
        assert started == ended
        assert set(started.values()) == {1}


SCRIPTED = (sys.executable, "-u", "-m", "tests.worker.scripted_process", "http")


async def test_sigterm_under_load_leaves_nobody_without_an_answer() -> None:
    async with process(*SCRIPTED, DRAIN_SECONDS="5") as running:
        await running.event("listening")
        family = psutil.Process(running.process.pid).children(recursive=True)
        # Some ask again while others are still being answered; who comes after the last of these finds nobody.
        loads = [asyncio.create_task(answers(running, "/native", job(max_tokens=most), 16)) for most in (5, 200)]
        await until(lambda: len(running.events) > 100)
        running.process.send_signal(signal.SIGTERM)
        ends = sum(await asyncio.gather(*loads), Counter())
        assert set(ends) <= {"503", "ClientConnectorError"}, ends
        assert ends["503"] >= 1
        assert await running.end() == 0, running.lines[-5:]
        await gone(family)
        assert not [event for event in running.events if event["event"] == "end" and event["outcome"] == "cancelled"]


async def test_sigterm_while_the_model_loads_exits_0_and_ping_had_answered() -> None:
    async with process(*SCRIPTED, "load") as running:
        await running.event("loading")
        assert await running.ping() == 204
        running.process.send_signal(signal.SIGTERM)
        assert await running.end() == 0
        assert await running.ping() is None
