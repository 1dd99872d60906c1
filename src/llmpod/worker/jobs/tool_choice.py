"""Tools: a call that a client forces is made, with arguments that satisfy the tool's schema, or the job fails.

vLLM's tool parsers hold a forced call to the tool's schema only where the tool is `strict`, and some of them hold it to
nothing. So a forced tool is made strict here, and an answer that owes a call and has none is a failure.
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
"""The schema of a tool that takes none."""

_CALLS = ("function_call", "custom_tool_call", "tool_use")


def wanted(body: Mapping[str, Any]) -> bool:
    """Whether the model may call a function of the client's: OpenAI's two forms of a tool, and Anthropic's."""
    tools = body.get("tools")
    if not isinstance(tools, list) or _kind(body.get("tool_choice")) == "none":
        return False
    return any(isinstance(tool, dict) and tool.get("type", "custom") in ("function", "custom") for tool in tools)


def forced(body: Mapping[str, Any]) -> bool:
    """Whether the client leaves the model no choice: `required`, `any`, or a tool by name."""
    return wanted(body) and _kind(body.get("tool_choice")) not in (None, "none", "auto")


def _kind(choice: object) -> object:
    return choice.get("type") if isinstance(choice, dict) else choice


def strict(tools: list[Any]) -> list[Any]:
    """The tools, `strict` where the client left it open, and with a schema. What is no tool is vLLM's to refuse."""
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
    """A function that is strict where it said nothing of it, and takes no arguments where it names none.

    Without a schema, or with one that says only "object", a model may write anything for arguments, prose included.
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
    """The call that each of an answer's choices owes when the client forces a tool, unless its limit cuts it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._settled: set[int] = set()

    def observe(self, answer: object) -> bool:
        """Look at an answer, or at an event of a streamed one. Whether nothing is owed, by it and those before."""
        for index, settled in _choices(answer) if isinstance(answer, dict) else ():
            self._seen.add(index)
            if settled:
                self._settled.add(index)
        return bool(self._seen) and self._seen == self._settled

    def error(self) -> JobError:
        """The failure of an answer that came to its end without it."""
        return JobError(
            Code.UNSUPPORTED,
            "The model answered without the call that tool_choice forces: this worker's parser cannot enforce one.",
            field="tool_choice",
        )


def _choices(answer: dict[str, Any]) -> Iterator[tuple[int, bool]]:
    """Each choice in it, and whether it holds a call or its end by the limit.

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
    """vLLM's constraint for calls (xgrammar's structural tag, as JSON), with no more than MAX_BLANKS in a row."""
    try:
        tag = orjson.loads(structural_tag)
    except orjson.JSONDecodeError:
        return structural_tag  # a client's own, and the engine's to refuse
    for found in json_walk.objects(tag, closed=("json_schema",)):
        if found.get("type") == "json_schema" and found.get("max_whitespace_cnt", MAX_BLANKS) is None:
            found["max_whitespace_cnt"] = MAX_BLANKS
    return orjson.dumps(tag).decode()
