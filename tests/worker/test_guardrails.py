"""The guardrails hold for what the engine gets: on every route, in every field, in every encoding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.app.metered_engine import ENGINE_ARGUMENTS
from llmpod.worker.engine.engine import Engine
from llmpod.worker.jobs.inputs import GUARD
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, error_of, replies_of

Json = dict[str, Any]

CHAT = "/v1/chat/completions"


def call(route: str, body: Json) -> Json:
    return {"openai_route": route, "openai_input": body}


def said(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def asking(text: str) -> dict[str, Json]:
    """The same question in every shape that generates, by name."""
    return {
        "native": {"prompt": text, "sampling_params": {"max_tokens": 2}},
        "chat": call(CHAT, {"messages": said(text), "max_tokens": 2}),
        "batch": call(CHAT + "/batch", {"messages": [said(text)], "max_tokens": 2}),
        "completions": call("/v1/completions", {"prompt": text, "max_tokens": 2}),
        "responses": call("/v1/responses", {"input": text, "max_output_tokens": 2}),
        "messages": call("/v1/messages", {"messages": said(text), "max_tokens": 2}),
    }


SHAPES = tuple(asking(""))
ROUTES = tuple(name for name in SHAPES if name != "native")


def streamed(job_input: Json) -> Json:
    if "openai_input" in job_input:
        return job_input | {"openai_input": job_input["openai_input"] | {"stream": True}}
    return job_input | {"stream": True}


def cached(value: object, *, name: str = "") -> int:
    """Every number in a reply that stands under a name of the cache, added up."""
    if isinstance(value, str) and value.startswith(("data: ", "event: ")):
        lines = (line.removeprefix("data: ") for line in value.splitlines() if line.startswith("data: {"))
        return sum(cached(json.loads(line)) for line in lines)
    if isinstance(value, dict):
        return sum(cached(inner, name=key) for key, inner in value.items())
    if isinstance(value, list):
        return sum(cached(inner, name=name) for inner in value)
    return int(value) if "cache" in name and isinstance(value, int) else 0


# -- what jobs know of one another -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_answer_does_not_say_what_another_job_has_asked(
    make_worker: Callable[..., Worker], events: Events, engine: Engine, shape: str, stream: bool
) -> None:
    """The engine has the prompt in its cache, and the log counts that; the client learns it where the operator says."""
    if stream and shape == "batch":
        return  # vLLM does not stream it
    question = asking(f"{shape} {stream}: " + "What does a nurse do all day long? " * 20)[shape]
    job_input = streamed(question) if stream else question
    for show in (False, True):
        worker = make_worker(max_prompt_chars=0, show_cached_tokens=show)
        await replies_of(worker, job_input, f"first-{show}")
        replies = await replies_of(worker, job_input, f"second-{show}")
        assert events.end_of(f"second-{show}")["cached_tokens"] >= 128
        # vLLM leaves the count out of chats and completions unless ENABLE_PROMPT_TOKENS_DETAILS is set.
        shown = show and shape in ("native", "responses")
        assert sum(map(cached, replies)) >= 128 * shown
        assert shown or not sum(map(cached, replies))


@pytest.mark.parametrize("shape", SHAPES)
async def test_jobs_share_no_prefix_where_the_operator_isolates_them(
    make_worker: Callable[..., Worker], events: Events, shape: str
) -> None:
    worker = make_worker(max_prompt_chars=0, isolate_prefix_cache=True)
    job_input = asking(f"isolated {shape}: " + "What does a nurse do all day long? " * 20)[shape]
    if "openai_input" in job_input:
        job_input["openai_input"]["cache_salt"] = "the same"
    for name in ("first", "second"):
        await replies_of(worker, job_input, name)
        assert not events.end_of(name).get("cached_tokens")


# -- what only the engine may be told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shape", ROUTES)
@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"prompt_token_ids": [1]}},
        {"ec_transfer_params": {"x": 1}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"vllm_xargs": {"ec_transfer_params": "x"}},
        {"vllm_xargs": {"kv_cache_report_mode": "x"}},
        {"vllm_xargs": {"anything": 1}},
    ],
)
async def test_arguments_of_split_serving_are_the_clients_fault_on_every_route(
    make_worker: Callable[..., Worker], engine: Engine, shape: str, fields: Json, stream: bool
) -> None:
    if stream and shape == "batch":
        return  # vLLM does not stream it
    job_input = asking("Hi")[shape]
    job_input["openai_input"] |= fields
    error = await error_of(make_worker(), streamed(job_input) if stream else job_input)
    assert (error["status"], error["retryable"]) == (400, False)
    assert error["code"] in ("unsupported", "unknown_field")  # not every route has vllm_xargs
    assert error["field"] == next(iter(fields))
    assert engine.unfinished == 0


def test_what_the_engine_reads_from_a_requests_extra_arguments_is_known() -> None:
    """A new one would be a way past the worker for clients where the operator has a custom logits processor."""
    import vllm.v1

    read = re.compile(r"extra_args\.get\(\s*\"(\w+)\"")
    sources = Path(*vllm.v1.__path__).rglob("*.py")
    found = {name for source in sources for name in read.findall(source.read_text())}
    assert found == ENGINE_ARGUMENTS


# -- the guard's own character -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_guards_character_is_refused_in_a_clients_text(
    make_worker: Callable[..., Worker], shape: str
) -> None:
    error = await error_of(make_worker(), asking(f"What sal{GUARD}ary does a nurse get?")[shape])
    assert (error["status"], error["code"]) == (400, "invalid_input")
    assert "U+10FFFD" in error["message"]
