"""Forced tools through the session's real engine: the same on every route, streamed or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmpod.worker.routes import sse
from llmpod.worker.worker import Worker
from tests.worker.conftest import Json

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
QUESTION = [{"role": "user", "content": "Which tools do you have?"}]


def body_of(route: str, schema: Any, max_tokens: int = 150) -> Json:
    """A request that forces one call of the tool f."""
    one: Json = {"temperature": 0, "parallel_tool_calls": False}
    if route == CHAT:
        tool = {"type": "function", "function": {"name": "f"} | ({} if schema == "missing" else {"parameters": schema})}
        return {"messages": QUESTION, "tools": [tool], "tool_choice": "required", "max_tokens": max_tokens} | one
    if route == RESPONSES:
        tool = {"type": "function", "name": "f"} | ({} if schema == "missing" else {"parameters": schema})
        choice = {"type": "function", "name": "f"}
        return {"input": "Hi", "tools": [tool], "tool_choice": choice, "max_output_tokens": max_tokens} | one
    tool = {"name": "f", "input_schema": schema}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = {"messages": QUESTION, "tools": [tool], "tool_choice": choice, "max_tokens": max_tokens}
    return body | {"temperature": 0}


async def replies_to(worker: Worker, route: str, body: Json) -> list[Any]:
    job = {"id": "job-1", "input": {"openai_route": route, "openai_input": body}}
    replies = [reply async for reply in worker.handle(job)]
    assert not any(isinstance(reply, dict) and "error" in reply and reply["error"] for reply in replies), replies
    return replies


def events_in(replies: list[str]) -> list[Any]:
    found = sse.Splitter().feed("".join(replies).encode())
    return [said for said in map(sse.parse_data, found) if isinstance(said, dict)]


def ending(route: str, replies: list[Any], *, stream: bool) -> tuple[list[str], str | None]:
    """The arguments of the calls, and why the answer ended."""
    if not stream:
        (reply,) = replies
        if route == CHAT:
            choices = reply["choices"]
            calls = [call["function"]["arguments"] for c in choices for call in c["message"].get("tool_calls") or ()]
            return calls, choices[0]["finish_reason"]
        if route == RESPONSES:
            calls = [item["arguments"] for item in reply["output"] if item["type"] == "function_call"]
            return calls, (reply.get("incomplete_details") or {}).get("reason")
        calls = [json.dumps(part["input"]) for part in reply["content"] if part["type"] == "tool_use"]
        return calls, reply["stop_reason"]
    events = events_in(replies)
    pieces: dict[Any, str] = {}
    finish = None
    for event in events:
        for choice in event.get("choices") or ():
            finish = choice.get("finish_reason") or finish
            for call in choice["delta"].get("tool_calls") or ():
                key = (choice["index"], call["index"])
                pieces[key] = pieces.get(key, "") + ((call.get("function") or {}).get("arguments") or "")
        if event.get("type") == "response.function_call_arguments.done":
            pieces[event["output_index"]] = event["arguments"]
        if event.get("type") in ("response.completed", "response.incomplete"):
            finish = (event["response"].get("incomplete_details") or {}).get("reason")
        if event.get("type") == "content_block_start" and event["content_block"]["type"] == "tool_use":
            pieces[event["index"]] = ""
        if event.get("type") == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            pieces[event["index"]] += event["delta"]["partial_json"]
        if event.get("type") == "message_delta":
            finish = event["delta"]["stop_reason"]
    return list(pieces.values()), finish


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "schema"),
    [
        (CHAT, "missing"),
        (CHAT, None),
        (CHAT, {}),
        (CHAT, {"type": "object"}),
        (RESPONSES, None),
        (RESPONSES, {"type": "object"}),
        (MESSAGES, {"type": "object"}),
    ],
)
async def test_a_tool_that_names_no_arguments_is_called_with_none(
    make_worker: Callable[..., Worker], route: str, schema: Any, stream: bool
) -> None:
    replies = await replies_to(make_worker(), route, body_of(route, schema) | {"stream": stream})
    calls, _ = ending(route, replies, stream=stream)
    assert calls
    assert all(json.loads(call or "{}") == {} for call in calls), calls


@pytest.mark.parametrize("stream", [False, True])
async def test_each_of_several_answers_makes_its_call(make_worker: Callable[..., Worker], stream: bool) -> None:
    body = body_of(CHAT, {"type": "object"}) | {"n": 2, "stream": stream, "temperature": 1}
    calls, finish = ending(CHAT, await replies_to(make_worker(), CHAT, body), stream=stream)
    assert [json.loads(call) for call in calls] == [{}, {}]
    assert finish == "tool_calls"


CUT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 500}}, "required": ["text"]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "reason"), [(CHAT, "length"), (RESPONSES, "max_output_tokens"), (MESSAGES, "max_tokens")]
)
async def test_a_forced_call_that_its_limit_cuts_ends_as_clients_know_it(
    make_worker: Callable[..., Worker], route: str, reason: str, stream: bool
) -> None:
    body = body_of(route, CUT, max_tokens=30) | {"stream": stream}
    replies = await replies_to(make_worker(), route, body)
    assert ending(route, replies, stream=stream)[1] == reason
