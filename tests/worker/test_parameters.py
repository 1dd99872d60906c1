"""What a job asks for, what its answer and the log say about it, and what the real engine gets: one and the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.errors import JobError
from llmpod.worker.routes import sse
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, Json, error_of, replies_of

USER = [{"role": "user", "content": "How do I write a CV?"}]
BODIES: dict[str, Json] = {
    "native": {"messages": USER},
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "How do I write a CV?"},
    "/v1/responses": {"input": "How do I write a CV?"},
    "/v1/messages": {"messages": USER, "max_tokens": 99},
}
LIMIT = {"native": "max_tokens", "/v1/chat/completions": "max_completion_tokens", "/v1/responses": "max_output_tokens"}


def job(route: str, stream: bool, given: Json) -> Json:
    if route == "native":
        return BODIES[route] | {"stream": stream, "sampling_params": given}
    return {"openai_route": route, "openai_input": BODIES[route] | {"stream": stream} | given}


async def whole(engine: Engine, params: Any, request_id: str) -> int:
    """The number of steps of one request."""
    async with aclosing(engine.generate([1, 2, 3], params, request_id)) as steps:
        return len([step async for step in steps])


def said_limits(replies: list[Any]) -> Json | None:
    """The `limits` of an answer, streamed or not, on whichever route."""
    found: list[Json] = []
    for reply in replies:
        parts = [reply] if isinstance(reply, dict) else [sse.parse_data(e) for e in sse.Splitter().feed(reply.encode())]
        found += [part["limits"]["max_tokens"] for part in parts if isinstance(part, dict) and "limits" in part]
    return found[0] if found else None


@pytest.fixture
def sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parameters of every request that the engine's process gets."""
    seen: list[Any] = []
    core = engine._llm.engine_core
    add = core.add_request_async

    async def add_request_async(request: Any) -> None:
        seen.append(request.sampling_params)
        await add(request)

    monkeypatch.setattr(core, "add_request_async", add_request_async)
    return seen


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "asked", "effective", "reason"),
    [
        (route, *limit)
        for route in BODIES
        for limit in ((None, 150, "default"), (999, 256, "lowered"), (7, 7, None))
        if (route, limit[0]) != ("/v1/messages", None)  # Anthropic's API requires it
    ],
)
async def test_the_answers_limits_the_log_and_the_engine_agree(
    make_worker: Callable[..., Worker],
    events: Events,
    sent: list[Any],
    stream: bool,
    route: str,
    asked: int | None,
    effective: int,
    reason: str | None,
) -> None:
    given = {} if asked is None else {LIMIT.get(route, "max_tokens"): asked}
    replies = await replies_of(make_worker(max_tokens_min=1), job(route, stream, given))
    expected = {"requested": asked, "effective": effective, "reason": reason}
    assert [params.max_tokens for params in sent] == [effective]
    assert events.end_of("job-1")["max_tokens"] == expected
    assert said_limits(replies) == (expected if reason or route == "native" else None)


async def test_a_prompt_that_leaves_less_room_is_said_so(
    make_worker: Callable[..., Worker], engine: Engine, events: Events, sent: list[Any]
) -> None:
    prompt = [5] * (engine.max_model_len - 20)
    worker = make_worker(max_prompt_chars=0)
    (reply,) = await replies_of(worker, {"openai_route": "/v1/completions", "openai_input": {"prompt": prompt}})
    expected = {"requested": None, "effective": 20, "reason": "context"}
    assert [params.max_tokens for params in sent] == [20]
    assert events.end_of("job-1")["max_tokens"] == reply["limits"]["max_tokens"] == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("given", [{"min_tokens": 151}, {"min_tokens": 257, "max_tokens": 999}, {"min_tokens": 10**9}])
@pytest.mark.parametrize("route", ["native", "/v1/chat/completions", "/v1/completions"])
async def test_more_tokens_than_the_answer_may_have_is_the_clients_error_and_the_engine_hears_the_next_job(
    make_worker: Callable[..., Worker], engine: Engine, sent: list[Any], route: str, stream: bool, given: Json
) -> None:
    worker = make_worker()
    reply = (await replies_of(worker, job(route, stream, given)))[-1]
    error = json.loads(reply["error"])
    assert (error["status"], error["retryable"]) == (400, False)
    assert error["field"].removeprefix("sampling_params.") == "min_tokens"
    assert sent == []
    assert (await replies_of(worker, job("native", False, {"max_tokens": 1}), "next"))[-1]["choices"]
    assert engine.unfinished == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_tokens", 9),
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", "hot"),
        ("top_p", 7.0),
        ("seed", 1 << 70),
        ("bad_words", [""]),
        ("logit_bias", {"one": 1}),
        ("structured_outputs", 255),
    ],
)
async def test_parameters_that_became_wrong_after_they_were_checked_never_reach_the_engine(
    engine: Engine, name: str, value: object
) -> None:
    """The engine's process checks them when it reads them, and never reads again after a failure."""
    params = engine.sampling({"temperature": 0.0}, 8, stream=False)

    send = engine._llm.input_processor.process_inputs

    def process_inputs(*args: Any, **named: Any) -> Any:  # vLLM's own check is behind us when it returns
        request = send(*args, **named)
        setattr(request.sampling_params, name, value)
        return request

    engine._llm.input_processor.process_inputs = process_inputs
    try:
        with pytest.raises(JobError) as caught:
            await whole(engine, params, "spoiled")
    finally:
        engine._llm.input_processor.process_inputs = send
    assert caught.value.failure.status == 400
    assert engine.unfinished == 0
    assert await whole(engine, engine.sampling({}, 1, stream=False), "next") == 1


async def test_an_operators_min_tokens_gives_way_to_a_clients_smaller_limit(
    make_worker: Callable[..., Worker], engine: Engine, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine._sampling._default, "min_tokens", 100)
    worker = make_worker(max_tokens_min=1, default_sampling_params={"min_tokens": 100})
    for route in ("native", "/v1/chat/completions", "/v1/completions"):
        await replies_of(worker, job(route, False, {"max_tokens": 5}), route)
    assert [(params.min_tokens, params.max_tokens) for params in sent] == [(5, 5)] * 3


@pytest.mark.parametrize("wrong", [255, [1], "text", True, {"regex": 5}, {"nothing": 1}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", BODIES)
async def test_a_constraint_of_the_wrong_type_is_the_clients_error(
    make_worker: Callable[..., Worker], route: str, stream: bool, wrong: object
) -> None:
    error = await error_of(make_worker(), job(route, stream, {"structured_outputs": wrong})) if not stream else {}
    if stream:
        replies = await replies_of(make_worker(), job(route, stream, {"structured_outputs": wrong}))
        error = json.loads(replies[-1]["error"])
    assert (error["status"], error["retryable"]) == (400, False), error
    assert error["field"].removeprefix("sampling_params.").startswith("structured_outputs")


async def test_a_seed_gives_the_same_answer_however_the_prompt_is_computed(make_worker: Callable[..., Worker]) -> None:
    """A prompt above a step's token budget is computed in pieces the first time; the second time it is cached."""
    worker = make_worker(max_prompt_chars=0)
    job_input = {
        "prompt": "question " * 2500,
        "sampling_params": {"seed": 7, "temperature": 1.5, "max_tokens": 64, "ignore_eos": True},
    }
    cut, cached = [(await replies_of(worker, job_input, f"job-{number}"))[-1] for number in (1, 2)]
    assert cut["usage"]["input"] > 2048, "the budget of a step"
    assert cut["choices"] == cached["choices"]
