"""The production path: handler.py as a process, the unmodified SDK, and a RunPod endpoint on this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from llmpod.endpoint import LocalEndpoint, Options
from llmpod.loadtest.environ import Secret
from llmpod.loadtest.options import SMOKE_CHECKS, SmokeOptions
from llmpod.loadtest.run.client import RunPod
from llmpod.loadtest.run.rate_limit import gates
from llmpod.loadtest.smoke.checks import Smoke
from tests.worker.processes import WorkerProcess, gone, spawn

pytestmark = [pytest.mark.slow, pytest.mark.engine]

Json = dict[str, Any]


@pytest.fixture(scope="module")
async def endpoint() -> AsyncIterator[LocalEndpoint]:
    options = Options(port=0, fleet=False, journal="", console=False, take_hold_s=1, stop_hold_s=1)
    async with LocalEndpoint(options) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture(scope="module")
async def worker(endpoint: LocalEndpoint) -> AsyncIterator[WorkerProcess]:
    worker = await spawn(endpoint, "worker-1", PROFILE="career", MAX_TOKENS_MAX="0", DRAIN_SECONDS="100")
    try:
        await endpoint.ready(timeout_s=150)
        yield worker
    finally:
        if worker.process.returncode is None:
            worker.process.kill()
            await worker.end()


async def post(client: aiohttp.ClientSession, url: str, job_input: object) -> Json:
    async with client.post(url, json={"input": job_input}) as response:
        assert response.status == 200
        body: Json = await response.json()
        return body


async def status(client: aiohttp.ClientSession, endpoint: LocalEndpoint, job_id: str) -> Json:
    async with client.get(f"{endpoint.url}/status/{job_id}") as response:
        body: Json = await response.json()
        return body


SECONDS = {"prompt": "Hello", "sampling_params": {"max_tokens": 3500, "ignore_eos": True}}
LONG = {"prompt": "Hello", "sampling_params": {"max_tokens": 1000, "ignore_eos": True}}


async def test_a_plain_job_is_completed_and_logged_under_its_own_id(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession
) -> None:
    job = await post(client, endpoint.url + "/runsync", {"prompt": "How do I prepare for a job interview?"})
    assert job["status"] == "COMPLETED"
    output = job["output"]
    assert output["choices"][0]["text"]
    assert output["usage"]["output"] > 0
    assert output["request_id"] == job["id"]
    await worker.event("end", job["id"])
    assert [event["event"] for event in worker.of(job["id"])] == ["start", "end"]


async def test_the_smoke_test_passes(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession
) -> None:
    """All of it, against a worker with a profile: what it blocks is blocked, and what is too long fails as such."""
    wanted = SmokeOptions(
        prompt="How do I prepare for a job interview?",
        cold_timeout=60,
        timeout=60,
        blocked_prompt="What is the average salary of a data scientist?",
    )
    smoke = Smoke(RunPod(client, endpoint.url, Secret(""), gates(None)), wanted)
    results = await smoke.run(lambda _: None)
    assert {result.name: result.passed for result in results} == dict.fromkeys(SMOKE_CHECKS, True), results
    assert smoke.facts["model"] == "llmpod-demo"
    assert "vllm" in smoke.facts


async def test_a_streamed_job_arrives_in_pieces_that_join_to_the_answer(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession
) -> None:
    job = {"prompt": "How do I prepare for a job interview?", "sampling_params": {"temperature": 0, "max_tokens": 256}}
    whole = await post(client, endpoint.url + "/runsync", job)
    job_id = (await post(client, endpoint.url + "/run", job | {"stream": True}))["id"]
    chunks: list[Json] = []
    state = "IN_QUEUE"
    while state in ("IN_QUEUE", "IN_PROGRESS"):
        async with client.get(f"{endpoint.url}/stream/{job_id}") as response:
            reply = await response.json()
        chunks += [item["output"] for item in reply["stream"]]
        state = reply["status"]
    assert state == "COMPLETED"
    assert len(chunks) > 1
    output = whole["output"]
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == output["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_rejected_job_is_failed_with_json_in_its_error(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession
) -> None:
    job = await post(client, endpoint.url + "/runsync", {"prompt": "x" * 1025})
    assert job["status"] == "FAILED"
    error = json.loads(job["error"])
    assert (error["code"], error["status"], error["job_id"]) == ("prompt_too_long", 400, job["id"])
    assert "1025" in error["message"]
    assert "Traceback" not in json.dumps(job)


async def test_a_blocked_job_is_completed_with_the_policys_answer(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession
) -> None:
    job = await post(client, endpoint.url + "/runsync", {"prompt": "What salary do nurses get?"})
    assert job["status"] == "COMPLETED"
    output = job["output"]
    assert output["blocked"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_job_ends_in_the_engine(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession, stream: bool
) -> None:
    state = "COMPLETED"
    for _ in range(5):  # a machine that stalls may let a job of seconds finish before it is cancelled
        job_id = (await post(client, endpoint.url + "/run", SECONDS | {"stream": stream}))["id"]
        await worker.event("start", job_id)
        async with client.post(f"{endpoint.url}/cancel/{job_id}") as response:
            state = (await response.json())["status"]
        if state != "COMPLETED":
            break
    assert state == "CANCELLED"
    end = await worker.event("end", job_id)
    assert end["outcome"] == "cancelled"
    assert (await status(client, endpoint, job_id))["status"] == "CANCELLED"


async def test_every_line_of_the_log_is_json_and_none_has_a_prompt(worker: WorkerProcess) -> None:
    odd = [line for line in worker.lines if not line.startswith("{")]
    assert [line for line in odd if not line.startswith("--- Starting Serverless Worker")] == []
    assert "a job interview" not in "\n".join(worker.lines)
    ready = next(event for event in worker.events if event["event"] == "ready")
    assert {"import_ms", "load_ms", "warm_up_ms", "kv_cache_tokens"} <= set(ready)
    loading = [event for event in worker.events if event["event"] == "loading"]
    assert all(event["demo"] is True for event in loading)
    assert any("Demonstration" in event.get("note", "") for event in loading)


async def test_sigterm_lets_a_running_job_finish_and_leaves_no_process(
    endpoint: LocalEndpoint, worker: WorkerProcess, client: aiohttp.ClientSession
) -> None:
    """The last test of this worker: it ends it."""
    family = worker.family()
    job_id = (await post(client, endpoint.url + "/run", LONG))["id"]
    await worker.event("start", job_id)
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.end() == 0, worker.lines[-5:]
    assert (await worker.event("end", job_id))["outcome"] == "ok"
    assert (await status(client, endpoint, job_id))["status"] == "COMPLETED"
    await gone(family)


async def test_sigterm_while_the_model_loads_ends_at_once_and_leaves_no_process(endpoint: LocalEndpoint) -> None:
    worker = await spawn(endpoint, "worker-2")
    await worker.event("loading")
    await asyncio.sleep(0.3)  # into the start of the engine's processes; a quick machine loads the model in two seconds
    family = worker.family()
    asked = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.end() == 0, worker.lines[-5:]
    assert time.monotonic() - asked < 30
    await gone(family)
    assert not [event for event in worker.events if event["event"] == "ready"]


async def test_a_worker_that_cannot_start_says_why_in_one_line_and_exits_1(endpoint: LocalEndpoint) -> None:
    worker = await spawn(endpoint, "worker-3", MODEL_NAME="/no/such/folder")
    assert await worker.end() == 1
    last = worker.events[-1]
    assert (last["event"], last["setting"]) == ("fatal", "MODEL_NAME")
    assert "/no/such/folder" in last["cause"]
    assert "Traceback" not in "\n".join(worker.lines)
