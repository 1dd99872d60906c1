"""One start of handler.py with a model from a hub: what an operator reads, and that the worker stays local afterwards.

The hub is slow and on this machine, nvidia-smi is a script that shows two GPUs, and the engine is the real one.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import pytest

from llmpod.endpoint import LocalEndpoint, Options
from llmpod.worker.jobs.route_catalog import RULES
from llmpod.worker.settings import DEMO_MODEL
from tests.worker.adapters import make_adapter
from tests.worker.connections import Recorder
from tests.worker.loopback_hub import Hub
from tests.worker.processes import WorkerProcess, spawn
from tests.worker.test_machine import CARD, OTHER, fake

pytestmark = [pytest.mark.slow, pytest.mark.engine]

Json = dict[str, Any]
TOKEN = "a-token-of-the-tests-in-no-line"


class Running(NamedTuple):
    worker: WorkerProcess
    endpoint: LocalEndpoint
    hub: Hub
    recorder: Recorder


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("start")
    fake(folder, f"echo '{CARD}'; echo '{OTHER}'")
    recorder = Recorder(folder / "recorder")
    options = Options(port=0, fleet=False, journal="", console=False, take_hold_s=1, stop_hold_s=1)
    hub = Hub.of(DEMO_MODEL, bytes_per_s=1_500_000, gated=True, token=TOKEN)
    with hub:
        async with LocalEndpoint(options) as endpoint:
            worker = await spawn(
                endpoint,
                "worker-1",
                behind=(),
                **recorder.variables,
                MODEL_NAME="owner/model",
                HF_ENDPOINT=hub.url,
                HF_HOME=str(folder / "hf"),
                HF_HUB_OFFLINE="0",
                TRANSFORMERS_OFFLINE="0",
                HF_TOKEN=TOKEN,
                LOADING_REPORT_SECONDS="0.2",
                MAX_TOKENS_MIN="1",
                TOOL_CALL_PARSER="hermes",
                LORA_MODULES=json.dumps({"coach": str(make_adapter(folder / "adapter"))}),
                PATH=f"{folder}:/usr/bin:/bin",
            )
            try:
                await worker.event("ready")
                yield Running(worker, endpoint, hub, recorder)
            finally:
                if worker.process.returncode is None:
                    worker.process.kill()
                await worker.end()


async def answer(running: Running, job_input: Json) -> Json:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running.endpoint.url}/runsync", json={"input": job_input}) as response,
    ):
        body: Json = await response.json()
        return body


def named(running: Running, name: str) -> list[Json]:
    return [event for event in running.worker.events if event["event"] == name]


async def test_the_environment_comes_first_and_says_what_runs_where(running: Running) -> None:
    names = [event["event"] for event in running.worker.events if event["event"] not in ("loading", "serve_mode")]
    assert names[:5] == ["environment", "preflight", "fit", "warm_up", "ready"]
    [environment] = named(running, "environment")
    assert [gpu["compute_capability"] for gpu in environment["gpus"]] == ["8.9", "9.0"]
    assert environment["driver"] == "550.127.05"
    assert environment["hf_token"] is True
    assert environment["vllm"].startswith("0.")
    assert environment["settings"]["MODEL_NAME"] == "owner/model"
    assert environment["cache"]["path"].endswith("hf/hub")
    assert environment["cache"]["refused"] is None


async def test_the_hub_was_asked_before_anything_was_loaded(running: Running) -> None:
    [preflight] = named(running, "preflight")
    assert preflight["hub"] == "answered"
    assert preflight["download_bytes"] == (DEMO_MODEL / "model.safetensors").stat().st_size
    assert running.hub.asked[:2] == ["GET /api/models/owner/model", "GET /api/models/owner/model/auth-check"]


async def test_the_start_is_never_silent_and_shows_its_phases_and_bytes(running: Running) -> None:
    loading = named(running, "loading")
    assert {event["model"] for event in loading} == {"owner/model"}
    phases = {event["phase"] for event in loading}
    assert {"import", "load"} <= phases, phases
    amounts = [event["downloaded_bytes"] for event in loading if "downloaded_bytes" in event]
    assert amounts == sorted(amounts)
    assert amounts[-1] == (DEMO_MODEL / "model.safetensors").stat().st_size
    assert "download" in phases
    assert [event for event in loading if event.get("doing")], "what vLLM's processes say is passed on"
    stamps = [datetime.datetime.fromisoformat(event["ts"]) for event in running.worker.events]
    upto = [event["event"] for event in running.worker.events].index("ready")
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(stamps[: upto + 1])]
    assert max(gaps) < 15


async def test_ready_says_how_long_each_phase_took_and_where_memory_went(running: Running) -> None:
    [ready] = named(running, "ready")
    assert {"preflight", "import", "load", "warm_up", "routes", "weights", "download"} <= ready["start_ms"].keys()
    assert ready["memory"]["estimated"].keys() == {"fits", "weights_mib", "need_mib"}
    assert ready["start_ms"]["import"] == ready["import_ms"]
    assert ready["memory"]["kv_cache_mib"] == 1024
    assert ready["memory"]["processes_mib"] > 100
    assert [gpu["memory_mib"] for gpu in ready["memory"]["gpus"]] == [24564, 81559]
    names = [event["event"] for event in running.worker.events]
    assert "loading" not in names[names.index("ready") :]


async def test_the_warm_up_is_reported_by_what_is_served(running: Running) -> None:
    [event] = named(running, "warm_up")
    assert event["capabilities"].keys() == {"generate", "lora:coach"}
    assert all(result["ok"] and result["ms"] > 0 for result in event["capabilities"].values())


async def test_the_status_route_answers_for_the_real_worker(running: Running) -> None:
    job = await answer(running, {"route": "/status"})
    assert job["status"] == "COMPLETED", job
    status = job["output"]
    assert (status["state"], status["worker_id"], status["model"]) == ("ready", "worker-1", "owner/model")
    assert status["capabilities"] == {
        **dict.fromkeys(("generate", "tools"), True),
        **dict.fromkeys(("embed", "score", "classify", "vision", "audio", "reasoning"), False),
    }
    assert status["kv_cache_tokens"] == named(running, "ready")[0]["kv_cache_tokens"]
    assert [gpu["used_mib"] for gpu in status["gpus"]] == [24564 - 24081, 81559 - 81004]
    assert status["slots"]["in_use"] == 0
    assert status["warm_up"] == named(running, "warm_up")[0]["capabilities"]


CHAT = {"model": "coach", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}]}]
JOBS: list[Json] = [
    {"prompt": "Hello", "sampling_params": {"max_tokens": 4}},
    {"prompt": "Hello", "stream": True, "sampling_params": {"max_tokens": 4, "structured_outputs": {"regex": "a+"}}},
    {"openai_route": "/v1/chat/completions", "openai_input": CHAT | {"stream": True}},
    {"openai_route": "/v1/chat/completions", "openai_input": CHAT | {"tools": [TOOL]}},
    {"openai_route": "/v1/chat/completions", "openai_input": CHAT | {"messages": PICTURE}},
    {"openai_route": "/v1/chat/completions", "openai_input": CHAT | {"model": "somebody/else"}},
    {"openai_route": "/v1/completions", "openai_input": {"model": "no/such/adapter", "prompt": "Hello"}},
]
BODIES: dict[str, Json] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Hello", "max_tokens": 4},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
    "/v1/messages": {"messages": CHAT["messages"], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1, 2]},
    "/generative_scoring": {"query": "a", "items": ["b"], "label_token_ids": [5, 6]},
}


async def test_after_ready_no_process_connects_to_anything_but_the_endpoint(running: Running) -> None:
    """Every route is called; what this model does not have is refused, which may not ask anybody either."""
    routes = [
        {"route": rule.path, "body": BODIES.get(rule.path, {})} for rule in RULES.values() if "POST" in rule.methods
    ]
    routes += [{"route": rule.path} for rule in RULES.values() if "GET" in rule.methods]
    ended = [(await answer(running, job))["status"] for job in [*JOBS, *routes]]
    assert ended.count("COMPLETED") >= 15, ended
    ready = datetime.datetime.fromisoformat(named(running, "ready")[0]["ts"]).timestamp()
    seen = running.recorder.beyond_this_machine()
    before = {tuple(found.where) for found in seen if found.at < ready and isinstance(found.where, list)}
    hub, endpoint = (urlsplit(url) for url in (running.hub.url, running.endpoint.url))
    assert (hub.hostname, hub.port) in before, "the recorder sees what there is to see"
    after = {tuple(found.where) for found in seen if found.at > ready and found.event != "socket.getaddrinfo"}
    assert after == {(endpoint.hostname, endpoint.port)}
    names = {found.where for found in seen if found.at > ready and found.event == "socket.getaddrinfo"}
    assert names <= {endpoint.hostname}
    assert len({found.pid for found in seen}) > 1, "more than one process is recorded"


async def test_no_process_holds_a_connection_to_another_machine(running: Running) -> None:
    remote = {
        connection.raddr.ip
        for process in running.worker.family()
        for connection in process.net_connections("inet")
        if connection.raddr
    }
    assert remote
    assert all(ipaddress.ip_address(address).is_loopback for address in remote), remote


async def test_the_token_was_used_and_is_in_no_line(running: Running) -> None:
    assert f"Bearer {TOKEN}" in running.hub.authorizations
    assert running.worker.lines
    assert not [line for line in running.worker.lines if TOKEN in line]
