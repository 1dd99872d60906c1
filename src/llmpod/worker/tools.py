"""Tools: a call that a client forces is made, with arguments that satisfy the tool's schema, or the job fails.

vLLM's tool parsers hold a forced call to the tool's schema only where the tool is `strict`, and some of them hold it to
nothing. So a forced tool is made strict here, and an answer that owes a call and has none is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from llmpod.worker import nested
from llmpod.worker.errors import Code, JobError

MAX_BLANKS = 4
"""Blanks in a row between the tokens of a call's JSON. Without a limit a model can pad it until max_tokens ends it."""

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
    """The tools, `strict` where the client left it open. What is no tool is vLLM's to refuse."""
    return [_strict(tool) for tool in tools]


def _strict(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    inner = tool.get("function")
    if isinstance(inner, dict):
        return tool | {"function": _strict(inner)}
    return tool | {"strict": True} if tool.get("strict") is None else tool


class OwedCall:
    """The call that an answer owes when the client forces a tool."""

    def __init__(self, limit: str) -> None:
        """`limit`: the field that bounds the answer's length."""
        self._limit = limit
        self._made = False

    def see(self, said: object) -> bool:
        """Look at an answer, or at an event of a streamed one. Whether the call is made, there or before."""
        self._made = self._made or _calls(said)
        return self._made

    def missing(self, finish_reason: str | None) -> JobError:
        """The failure of an answer that came to its end without it."""
        if finish_reason == "length":
            return JobError(
                Code.INVALID_INPUT,
                f"{self._limit} ended the answer before the call that tool_choice forces was whole.",
                field=self._limit,
            )
        return JobError(
            Code.UNSUPPORTED,
            "The model answered without the call that tool_choice forces: this worker's parser cannot enforce one.",
            field="tool_choice",
        )


def _calls(said: object) -> bool:
    """Whether there is a call in it: in the shape of OpenAI's chat, OpenAI's responses or Anthropic's messages."""
    if not isinstance(said, dict):
        return False
    if isinstance(choices := said.get("choices"), list):
        turns = [choice.get("message") or choice.get("delta") or {} for choice in choices]
        return bool(turns) and all(turn.get("tool_calls") for turn in turns)
    parts = said.get("output") or said.get("content") or [said.get("item"), said.get("content_block")]
    return isinstance(parts, list) and any(isinstance(part, dict) and part.get("type") in _CALLS for part in parts)


def bounded(structural_tag: str) -> str:
    """vLLM's constraint for calls (xgrammar's structural tag, as JSON), with no more than MAX_BLANKS in a row."""
    try:
        tag = orjson.loads(structural_tag)
    except orjson.JSONDecodeError:
        return structural_tag  # a client's own, and the engine's to refuse
    for found in nested.objects(tag, closed=("json_schema",)):
        if found.get("type") == "json_schema" and found.get("max_whitespace_cnt", MAX_BLANKS) is None:
            found["max_whitespace_cnt"] = MAX_BLANKS
    return orjson.dumps(tag).decode()
