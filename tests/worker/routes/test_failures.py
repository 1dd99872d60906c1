"""A request fails alike, streamed or not: every generating route, every kind of failure, before and after the start."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.routes import sse
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, Json

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
BATCH, SCORING = "/v1/chat/completions/batch", "/generative_scoring"
QUESTION = [{"role": "user", "content": "How do I write a CV?"}]
BODIES: dict[str, Json] = {
    CHAT: {"messages": QUESTION, "max_tokens": 20},
    COMPLETIONS: {"prompt": "Hi", "max_tokens": 20},
    RESPONSES: {"input": "Hi", "max_output_tokens": 20},
    MESSAGES: {"messages": QUESTION, "max_tokens": 20},
}
WHOLE: dict[str, Json] = {
    BATCH: {"messages": [QUESTION, QUESTION], "max_tokens": 20},
    SCORING: {"query": "A CV is", "items": [" long", " short"], "label_token_ids": [300, 301]},
}
"""Routes that do not stream."""
LOOP = {"$ref": "#"}  # a schema that is itself: it compiles, and then no token fits it
LONG = "word " * 8000
SCHEMA = {"type": "json_schema", "schema": LOOP}
TOOL: Json = {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}
FAILURES: dict[str, dict[str, Json]] = {
    "a budget for thoughts that nothing reads": {
        CHAT: {"thinking_token_budget": 5},
        COMPLETIONS: {"thinking_token_budget": 5},
        MESSAGES: {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
        RESPONSES: {"thinking_token_budget": 5},
    },
    "a schema that nothing satisfies": {
        CHAT: {"structured_outputs": {"json": LOOP}},
        COMPLETIONS: {"structured_outputs": {"json": LOOP}},
        RESPONSES: {"structured_outputs": {"json": LOOP}},
        MESSAGES: {"output_config": {"format": SCHEMA}},
    },
    "a parameter out of range": {route: {"temperature": -1} for route in BODIES},
    "a parameter of another type": {route: {"temperature": "hot"} for route in BODIES},
    "a prompt that does not fit": {
        CHAT: {"messages": [{"role": "user", "content": LONG}]},
        COMPLETIONS: {"prompt": LONG},
        RESPONSES: {"input": LONG},
        MESSAGES: {"messages": [{"role": "user", "content": LONG}]},
    },
    "a choice of a tool that is not there": {
        CHAT: {
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        RESPONSES: {"tools": [TOOL | {"type": "function"}], "tool_choice": {"type": "function", "name": "g"}},
        MESSAGES: {
            "tools": [{"name": "f", "input_schema": TOOL["parameters"]}],
            "tool_choice": {"type": "tool", "name": "g"},
        },
    },
}
WHOLE_FAILURES: dict[str, dict[str, Json]] = {
    "a stream": {route: {"stream": True} for route in WHOLE},
    "a schema that nothing satisfies": {BATCH: {"structured_outputs": {"json": LOOP}}},
    "a parameter out of range": {BATCH: {"temperature": -1}, SCORING: {"priority": 2**64}},
    "a parameter of another type": {BATCH: {"temperature": "hot"}, SCORING: {"apply_softmax": "perhaps"}},
    "a prompt that does not fit": {
        BATCH: {"messages": [QUESTION, [{"role": "user", "content": LONG}]]},
        SCORING: {"query": LONG},
    },
    "a token that the model does not have": {SCORING: {"label_token_ids": [10**9]}},
}
CLIENTS = [(kind, route, extra) for kind, routes in FAILURES.items() for route, extra in routes.items()]


async def failure_of(worker: Worker, route: str, body: Json) -> Any:
    job = {"id": "job-1", "input": {"openai_route": route, "openai_input": body}}
    *replies, last = [reply async for reply in worker.handle(job)]
    failed = json.loads(last["error"])
    assert not replies or sse.failure(replies[-1].encode()) == failed["error"]
    assert "validation error" not in failed["message"] or "Stream" not in failed["message"], failed
    return failed


def kind_of(failed: Json) -> tuple[Any, ...]:
    return tuple(failed.get(name) for name in ("code", "status", "retryable", "field"))


@pytest.mark.parametrize(("kind", "route", "extra"), CLIENTS, ids=[f"{kind}, {route}" for kind, route, _ in CLIENTS])
async def test_a_clients_fault_is_the_same_400_streamed_and_not(
    make_worker: Callable[..., Worker], engine: Engine, events: Events, kind: str, route: str, extra: Json
) -> None:
    worker = make_worker(max_prompt_chars=0, max_tokens_max=0)
    found = [await failure_of(worker, route, BODIES[route] | extra | {"stream": stream}) for stream in (False, True)]
    assert kind_of(found[0]) == kind_of(found[1]), found
    assert (found[0]["status"], found[0]["retryable"]) in ((400, False), (404, False)), found
    assert found[0]["field"], found
    assert engine.unfinished == 0


@pytest.mark.parametrize(
    ("kind", "route", "extra"),
    [(kind, route, extra) for kind, routes in WHOLE_FAILURES.items() for route, extra in routes.items()],
)
async def test_a_clients_fault_is_a_400_on_routes_that_do_not_stream(
    make_worker: Callable[..., Worker], engine: Engine, events: Events, kind: str, route: str, extra: Json
) -> None:
    failed = await failure_of(make_worker(max_prompt_chars=0, max_tokens_max=0), route, WHOLE[route] | extra)
    assert (failed["status"], failed["retryable"]) == (400, False), failed
    assert failed["field"], failed
    assert engine.unfinished == 0


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("route", [*BODIES, *WHOLE])
@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        ("EngineGenerateError", ("generation_failed", 500, True, None)),
        ("EngineDeadError", ("engine_dead", 500, True, None)),
        ("error", ("generation_failed", 500, True, None)),
    ],
)
async def test_the_engines_fault_is_the_same_streamed_and_not(
    make_worker: Callable[..., Worker],
    engine: Engine,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    after: int,
    raised: str,
    wanted: Any,
) -> None:
    """Before the first output, and after some; `error` is the finish reason of a request that the engine gave up."""
    from vllm.v1.engine import exceptions

    real = engine._llm.generate

    async def breaks(*args: Any, **named: Any) -> AsyncIterator[Any]:
        async with aclosing(real(*args, **named)) as outputs:
            count = 0
            async for output in outputs:
                if count >= after or output.finished:
                    if raised != "error":
                        raise getattr(exceptions, raised)()
                    output.outputs[0].finish_reason, output.finished = "error", True
                    yield output
                    return
                yield output
                count += 1

    monkeypatch.setattr(engine._llm, "generate", breaks)
    monkeypatch.setattr(type(engine), "dead", property(lambda self: raised == "EngineDeadError"))
    worker = make_worker()
    for stream in (False, True) if route in BODIES else (False,):
        body = (BODIES | WHOLE)[route] | ({"stream": stream} if route in BODIES else {})
        assert kind_of(await failure_of(worker, route, body)) == wanted, stream


@pytest.mark.parametrize("shape", [("openai_route", "openai_input"), ("route", "body")])
@pytest.mark.parametrize("stream", ["true", 1, 0, "false", []])
@pytest.mark.parametrize("route", BODIES)
async def test_stream_is_true_or_false(
    make_worker: Callable[..., Worker], events: Events, route: str, stream: Any, shape: tuple[str, str]
) -> None:
    """What else vLLM would take for true, the endpoint in front of the worker would not."""
    job = {shape[0]: route, shape[1]: BODIES[route] | {"stream": stream}}
    (reply,) = [reply async for reply in make_worker().handle({"id": "job-1", "input": job})]
    failed = json.loads(reply["error"])
    assert (failed["status"], failed["field"], failed["retryable"]) == (400, "stream", False)


async def test_a_document_of_text_is_refused_for_what_it_is(make_worker: Callable[..., Worker], events: Events) -> None:
    part = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Once upon a time"}}
    failed = await failure_of(
        make_worker(), MESSAGES, {"messages": [{"role": "user", "content": [part]}], "max_tokens": 5}
    )
    assert (failed["status"], failed["retryable"]) == (400, False)
    assert "base64" not in failed["message"]
    assert failed["field"].startswith("messages")
