"""Forced tools, as decisions on plain data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmpod.worker.jobs import tool_choice

SCHEMA = {"type": "object", "properties": {"a": {}}}
CHAT_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
FLAT_TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": SCHEMA}
ANTHROPIC_TOOL: dict[str, Any] = {"name": "f", "input_schema": SCHEMA}


@pytest.mark.parametrize(
    ("choice", "wanted", "forced"),
    [
        (None, True, False),
        ("auto", True, False),
        ("none", False, False),
        ("required", True, True),
        ({"type": "auto"}, True, False),
        ({"type": "none"}, False, False),
        ({"type": "any"}, True, True),
        ({"type": "tool", "name": "f"}, True, True),
        ({"type": "function", "function": {"name": "f"}}, True, True),
        ({"type": "function", "name": "f"}, True, True),
    ],
)
@pytest.mark.parametrize("tool", [CHAT_TOOL, FLAT_TOOL, ANTHROPIC_TOOL])
def test_a_call_is_forced_by_every_choice_that_leaves_no_other(
    tool: Any, choice: Any, wanted: bool, forced: bool
) -> None:
    body = {"tools": [tool], "tool_choice": choice}
    assert (tool_choice.wanted(body), tool_choice.forced(body)) == (wanted, forced)


@pytest.mark.parametrize("given", [None, [], "f", 5, [5], [{"type": "web_search"}]])
def test_nothing_is_forced_without_a_function(given: Any) -> None:
    assert not tool_choice.forced({"tools": given, "tool_choice": "required"})


def test_a_tool_becomes_strict_where_the_client_left_it_open_and_the_clients_own_object_stays_as_it_was() -> None:
    free = CHAT_TOOL | {"function": CHAT_TOOL["function"] | {"strict": False}}
    given = [CHAT_TOOL, FLAT_TOOL, ANTHROPIC_TOOL, free, "no tool"]
    before = json.dumps(given)
    chat, flat, anthropic, still_free, nothing = tool_choice.strict(given)
    assert chat["function"]["strict"] is flat["strict"] is anthropic["strict"] is True
    assert (still_free, nothing) == (free, "no tool")
    assert json.dumps(given) == before


def test_blanks_are_bounded_in_every_schema_of_a_constraint_and_nothing_else_changes() -> None:
    schema = {
        "type": "object",
        "properties": {"type": {"const": "json_schema"}, "max_whitespace_cnt": {"enum": [None]}},
    }
    json_format = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": None}
    tag = {"type": "structural_tag", "format": {"type": "or", "elements": [{"content": json_format}, json_format]}}
    bounded = {**json_format, "max_whitespace_cnt": tool_choice.MAX_BLANKS}
    assert json.loads(tool_choice.bounded(json.dumps(tag))) == {
        "type": "structural_tag",
        "format": {"type": "or", "elements": [{"content": bounded}, bounded]},
    }
    assert tool_choice.bounded("no json") == "no json"


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"message": {"tool_calls": [{"id": "1"}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]},
        {"output": [{"type": "reasoning"}, {"type": "function_call"}]},
        {"type": "response.output_item.added", "item": {"type": "function_call"}},
        {"content": [{"type": "text"}, {"type": "tool_use"}]},
        {"type": "content_block_start", "content_block": {"type": "tool_use"}},
    ],
)
def test_a_call_is_seen_in_every_shape_and_remembered(said: Any) -> None:
    required = tool_choice.RequiredToolCall()
    assert required.observe(said)
    assert required.observe({"choices": []})


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"choices": []},
        {"choices": [{"message": {"tool_calls": []}}]},
        {"choices": [{"message": {"tool_calls": [{"id": "1"}]}}, {"message": {"content": "prose"}}]},
        {"choices": [{"delta": {"content": '"tool_calls":[{'}}]},
        {"output": [{"type": "message"}]},
        {"content": [{"type": "text", "text": "tool_use"}]},
        {"content": "tool_use"},
        {"type": "response.output_text.delta", "delta": "tool_use"},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}, {"index": 1, "delta": {"content": "a"}}]},
    ],
)
def test_prose_is_no_call(said: Any) -> None:
    assert not tool_choice.RequiredToolCall().observe(said)


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"index": 0, "message": {"content": "{"}, "finish_reason": "length"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {"status": "incomplete", "output": []},
        {"type": "response.incomplete", "response": {"status": "incomplete"}},
        {"content": [{"type": "text"}], "stop_reason": "max_tokens"},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}},
    ],
)
def test_an_answer_that_its_limit_cuts_owes_no_call(said: Any) -> None:
    assert tool_choice.RequiredToolCall().observe(said)


def test_each_choice_owes_a_call() -> None:
    required = tool_choice.RequiredToolCall()
    first, second = ({"choices": [{"index": index, "delta": {"tool_calls": [{"index": 0}]}}]} for index in (0, 1))
    assert required.observe(first)
    assert not required.observe({"choices": [{"index": 1, "delta": {"role": "assistant"}}]})
    assert required.observe(second)


@pytest.mark.parametrize("schema", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}, "missing"])
@pytest.mark.parametrize(
    ("tool", "path"),
    [
        ({"type": "function", "function": {"name": "f"}}, ("function", "parameters")),
        ({"type": "function", "name": "f"}, ("parameters",)),
        ({"name": "f", "input_schema": None}, ("input_schema",)),
    ],
)
def test_a_forced_tool_without_a_schema_takes_no_arguments(tool: Any, path: tuple[str, ...], schema: Any) -> None:
    given = json.loads(json.dumps(tool))
    holder = given.get("function", given)
    if schema != "missing":
        holder[path[-1]] = schema
    (closed,) = tool_choice.strict([given])
    for name in path:
        closed = closed[name]
    assert closed == {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {}}},
        {"type": "object", "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
        {"type": "array"},
        {"type": "object", "required": ["a"]},
        {"anyOf": [{"type": "object"}]},
    ],
)
def test_a_schema_that_says_anything_stays_as_it_is(schema: Any) -> None:
    (tool,) = tool_choice.strict([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert tool["function"]["parameters"] == schema


def test_the_failure_names_what_to_change() -> None:
    assert tool_choice.RequiredToolCall().error().field == "tool_choice"
