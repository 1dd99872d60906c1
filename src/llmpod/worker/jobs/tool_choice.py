"""Forced tool calls: the answer has a call whose arguments satisfy the tool's schema, or the job fails.

vLLM's tool parsers enforce a forced call's schema only where the tool is `strict`, and some never do. So a forced tool
is made strict here, and an answer without the required call is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import json_walk

MAX_BLANKS = 4
"""Blanks in a row between the tokens of a call's JSON. Without a limit a model can pad it until max_tokens ends it."""

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a tool without arguments."""

_CALLS = ("function_call", "custom_tool_call", "tool_use")


def wanted(body: Mapping[str, Any]) -> bool:
    """Whether the request has tools that the model may call, in OpenAI's two forms or Anthropic's."""
    tools = body.get("tools")
    if not isinstance(tools, list) or _kind(body.get("tool_choice")) == "none":
        return False
    return any(isinstance(tool, dict) and tool.get("type", "custom") in ("function", "custom") for tool in tools)


def forced(body: Mapping[str, Any]) -> bool:
    """Whether a call is forced: tool_choice is `required`, `any` or a tool's name."""
    return wanted(body) and _kind(body.get("tool_choice")) not in (None, "none", "auto")


def _kind(choice: object) -> object:
    return choice.get("type") if isinstance(choice, dict) else choice


def strict(tools: list[Any]) -> list[Any]:
    """Tools made `strict` where the client did not decide, with a schema. Invalid tools are left to vLLM to reject."""
    return [_strict(tool) for tool in tools]


def _strict(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    inner = tool.get("function")
    if isinstance(inner, dict):
        return tool | {"function": _closed(inner, "parameters")}
    if tool.get("type") == "function":
        return _closed(tool, "parameters")
    return _closed(tool, "input_schema") if "input_schema" in tool else _closed(tool, None)


def _closed(function: dict[str, Any], field: str | None) -> dict[str, Any]:
    """Make a function strict where `strict` is absent, and without arguments where it has no schema.

    Without a schema, or with only "object", a model may write any arguments, prose included.
    """
    if function.get("strict") is None:
        function = function | {"strict": True}
    if field is not None and function["strict"] and _names_nothing(function.get(field)):
        function = function | {field: NO_ARGUMENTS}
    return function


def _names_nothing(schema: object) -> bool:
    return schema is None or (
        isinstance(schema, dict)
        and schema.get("type", "object") == "object"
        and not schema.get("properties")
        and schema.keys() <= {"type", "properties", "required", "title", "description", "$schema"}
        and not schema.get("required")
    )


class RequiredToolCall:
    """Tracks whether each choice of an answer has the call that the client forces, unless max_tokens cut it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._settled: set[int] = set()

    def observe(self, answer: object) -> bool:
        """Read an answer, or an event of a streamed one. Returns whether all choices so far have their call."""
        for index, settled in _choices(answer) if isinstance(answer, dict) else ():
            self._seen.add(index)
            if settled:
                self._settled.add(index)
        return bool(self._seen) and self._seen == self._settled

    def error(self) -> JobError:
        """The error for an answer that ended without the call."""
        return JobError(
            Code.UNSUPPORTED,
            "The model answered without the call that tool_choice forces: this worker's parser cannot enforce one.",
            field="tool_choice",
        )


def _choices(answer: dict[str, Any]) -> Iterator[tuple[int, bool]]:
    """Index of each choice, and whether it holds a call or was cut by the limit.

    In the shape of OpenAI's chat, OpenAI's responses or Anthropic's messages; the latter two have one choice.
    """
    if isinstance(choices := answer.get("choices"), list):
        for position, choice in enumerate(choices):
            turn = choice.get("message") or choice.get("delta") or {}
            settled = bool(turn.get("tool_calls")) or choice.get("finish_reason") == "length"
            yield choice.get("index", position), settled
        return
    parts = answer.get("output") or answer.get("content") or [answer.get("item"), answer.get("content_block")]
    called = isinstance(parts, list) and any(isinstance(part, dict) and part.get("type") in _CALLS for part in parts)
    ends = [part for part in (answer, answer.get("delta"), answer.get("response")) if isinstance(part, dict)]
    cut = any(end.get("stop_reason") == "max_tokens" or end.get("status") == "incomplete" for end in ends)
    yield 0, called or cut


def bounded(structural_tag: str) -> str:
    """vLLM's constraint for calls (xgrammar's structural tag, as JSON) with at most MAX_BLANKS blanks in a row."""
    try:
        tag = orjson.loads(structural_tag)
    except orjson.JSONDecodeError:
        return structural_tag  # a client's own; the engine rejects it
    for found in json_walk.objects(tag, closed=("json_schema",)):
        if found.get("type") == "json_schema" and found.get("max_whitespace_cnt", MAX_BLANKS) is None:
            found["max_whitespace_cnt"] = MAX_BLANKS
    return orjson.dumps(tag).decode()
