"""This worker's HTTP server behind the local endpoint's load balancer, measured by the load tester."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import psutil
import pytest

from llmpod.endpoint import LoadBalancer, Options
from llmpod.loadtest.cli import commands
from llmpod.loadtest.cli.session import run
from llmpod.loadtest.environ import Environment, Secret
from llmpod.loadtest.model import run_files
from llmpod.worker.engine.engine import Engine
from tests.worker.http.serving import job, serving
from tests.worker.processes import REPOSITORY
from tests.worker.queue.test_loop_engine import Shared
from tests.worker.scripted import until

pytestmark = pytest.mark.process

FORWARD = [sys.executable, "-u", str(REPOSITORY / "tests" / "endpoint" / "workers" / "forward.py")]
START_S = 200.0
SCRIPTED = [sys.executable, "-u", "-m", "tests.worker.scripted_process", "http"]


@asynccontextmanager
async def balanced(command: list[str], workers: int = 1, **variables: str) -> AsyncIterator[LoadBalancer]:
    options = Options(
        kind="load-balancer", port=0, command=command, cwd=REPOSITORY, workers_min=workers, workers_max=workers,
        health_period_s=0.05, scale_period_s=0.05, journal="", console=False,
    )  # fmt: skip
    added = {"PYTHONPATH": str(REPOSITORY / "src"), "MODEL_NAME": "llmpod-demo"} | variables
    options = options.model_copy(update={"env": options.env | added})
    async with LoadBalancer(options) as endpoint:
        await endpoint.ready(workers, START_S)
        yield endpoint


@pytest.mark.alone  # an engine beside this one leaves the process between the load balancer and the engine no turn
async def test_the_real_engine_s_answers_stream_through_and_are_measured(engine: Engine, tmp_path: Path) -> None:
    async with serving(Shared(engine)) as served, balanced(FORWARD, TARGET=str(served.port)) as endpoint:
        client = openai.AsyncOpenAI(base_url=endpoint.url + "/v1", api_key="none", max_retries=0)
        asked: Any = {
            "model": "llmpod-demo", "messages": [{"role": "user", "content": "How do I write a CV?"}],
            "temperature": 0, "max_tokens": 40,
        }  # fmt: skip
        whole = await client.chat.completions.create(**asked)
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert len(chunks) > 5, "it was not streamed"
        with pytest.raises(openai.NotFoundError, match="llmpod-demo"):
            await client.chat.completions.create(**asked | {"model": "gpt-4"}, stream=True)
        claude = anthropic.AsyncAnthropic(base_url=endpoint.url, auth_token="none", max_retries=0)
        message: Any = {"model": "llmpod-demo", "messages": asked["messages"], "max_tokens": 20}
        async with claude.messages.stream(**message) as streamed:
            assert await streamed.get_final_text()
        with pytest.raises(anthropic.NotFoundError) as missing:
            await claude.messages.create(**message | {"model": "claude"})
        assert missing.value.body["type"] == "error"  # type: ignore[index]

        words = ["--base-url", endpoint.url, "--mode", "http", "--out", str(tmp_path / "run"), "--format", "quiet"]
        _, chosen = commands.parse([*words, "-c", "2", "--runs", "4", "--warmup-requests", "0", "--max-tokens", "30"])
        await run(chosen, Environment(Secret(""), None, plain=True))
        jobs = run_files.read(tmp_path / "run").jobs
        measured = [one for one in jobs if one.role == "measured"]
        assert len(measured) == 4
        for one in measured:
            assert (one.ok, one.worker_id) == (True, next(iter(endpoint.pool.workers)))
            assert one.ttft_ms is not None
            assert one.total_ms is not None
            assert 0 < one.ttft_ms < one.total_ms
            assert one.output_tokens
            assert not one.tokens_estimated
            assert (one.delay_ms, one.exec_ms) == (None, None)

        async with await client.chat.completions.create(
            **asked | {"max_tokens": 4000}, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            await anext(stream)
        await until(lambda: any(end["outcome"] == "cancelled" for end in served.ends()))
        await until(lambda: engine.unfinished == 0)


async def test_a_worker_process_on_one_port_says_204_and_200_listens_on_loopback_and_answers_before_it_ends() -> None:
    async with balanced(SCRIPTED) as endpoint, aiohttp.ClientSession() as session:
        (worker,) = endpoint.pool.workers.values()
        assert worker.port == worker.health_port, "the default"
        pid = endpoint.fleet.processes[worker.id].pid
        assert pid is not None
        listening = [one for one in psutil.Process(pid).net_connections() if one.status == psutil.CONN_LISTEN]
        assert {one.laddr for one in listening} == {("127.0.0.1", worker.port)}, "nobody else reaches it"
        sent = asyncio.create_task(session.post(endpoint.url + "/native", json=job(max_tokens=64)))
        await until(lambda: any('"event":"start"' in line for line in worker.logs))
        endpoint.fleet.workers_min = endpoint.fleet.workers_max = 0
        endpoint.fleet.retire(worker, "test")
        assert (await sent).status == 200, "SIGTERM lets it answer"
        await until(lambda: worker.dead is not None)
        assert (worker.ending, worker.exit_code) == ("stopped", 0)
