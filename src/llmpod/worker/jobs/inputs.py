"""Parser of job inputs: job["input"] -> a typed request, or an error that names the field.

Three shapes are accepted: native (`prompt` or `messages`), OpenAI (`openai_route`) and route (`route`). The keys decide
which one it is, here and nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.native_fields import settle_native

GUARD = "\U0010fffd"
"""The mark that prompts.py puts into control tokens: Unicode's last private-use character, which has no meaning."""

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `content` is plain text."""

    role: Role
    content: str


@dataclass(frozen=True)
class NativeRequest:
    """A native job. Exactly one of `prompt` and `messages` is set."""

    prompt: str | None
    messages: tuple[Message, ...] | None
    sampling: dict[str, Any]  # vLLM SamplingParams by name, as the client gave them, without max_tokens
    max_tokens: int | None
    stream: bool
    enable_validation: bool | None
    apply_chat_template: bool
    allow_partial: bool = False  # whether a structured output may be cut by max_tokens
    task: str | None = None  # the name of a profile's task
    adapted: Mapping[str, Any] = field(default_factory=dict)  # fields taken under another name, and ignored ones
    system: str | None = None  # the profile's system message, for a conversation without one
    prefill: str | None = None  # the profile's beginning of the answer

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the client, in order."""
        if self.prompt is not None:
            return (self.prompt,)
        return tuple(message.content for message in self.messages or ())

    @property
    def prompt_field(self) -> str:
        """The name of the field that holds the texts."""
        return "prompt" if self.prompt is not None else "messages"

    @property
    def chars(self) -> int:
        """Characters of all texts together, as MAX_PROMPT_CHARS counts them; an empty text counts as one."""
        return sum(len(text) or 1 for text in self.texts)


@dataclass(frozen=True)
class OpenAIRequest:
    """A call of one of vLLM's routes in the form of RunPod's /openai proxy (`body` is None for a GET)."""

    route: str  # as the client wrote it; checked by route_catalog
    body: dict[str, Any] | None
    method: str | None = None  # None: chosen from the route and the body

    @property
    def stream(self) -> bool:
        """Whether the answer comes as server-sent events."""
        return self.body is not None and self.body.get("stream") is True


@dataclass(frozen=True)
class RouteRequest(OpenAIRequest):
    """A call of one of vLLM's routes in the form {"route", "body", "method"} of other workers' clients."""


Request = NativeRequest | OpenAIRequest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Role
    content: str | Annotated[list[_TextPart], Field(fail_fast=True)]


class _Native(_Strict):
    prompt: str | None = None
    messages: Annotated[list[_Message], Field(fail_fast=True)] | None = None
    sampling_params: dict[str, Any] | None = None
    stream: bool | None = None
    enable_validation: bool | None = None
    apply_chat_template: bool | None = None
    allow_partial: bool | None = None
    task: str | None = None


def parse(job_input: object, sampling_names: Collection[str]) -> Request:
    """Parse a job's input that has passed bounds.py.

    `sampling_names` are the sampling parameters a client may set; the engine knows them.

    Raises:
        JobError: the input has no known shape, a field of the wrong type, or an unknown field.
    """
    if not isinstance(job_input, dict):
        raise JobError(Code.INVALID_INPUT, f"input must be an object, not {_kind(job_input)}.", field="input")
    if "openai_route" in job_input:
        return _openai(job_input)
    if "route" in job_input:
        return _route(job_input)
    return _native(job_input, sampling_names)


def _openai(job_input: dict[str, Any]) -> OpenAIRequest:
    """RunPod's proxy writes this shape, so unknown keys beside it are accepted."""
    return OpenAIRequest(_text(job_input, "openai_route"), _body(job_input, "openai_input"))


def _route(job_input: dict[str, Any]) -> RouteRequest:
    known = {"route", "body", "method"}
    for name in job_input:
        if name not in known:
            raise unknown(str(name), str(name), known)
    method = None if job_input.get("method") is None else _text(job_input, "method").upper()
    return RouteRequest(_text(job_input, "route"), _body(job_input, "body"), method)


def _text(job_input: dict[str, Any], field: str) -> str:
    value = job_input[field]
    if not isinstance(value, str):
        raise JobError(Code.INVALID_INPUT, f"{field} must be text, not {_kind(value)}.", field=field)
    return value


def _body(job_input: dict[str, Any], field: str) -> dict[str, Any] | None:
    """The body of a GET is absent, null or {}."""
    value = job_input.get(field)
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        raise JobError(Code.INVALID_INPUT, f"{field} must be an object, not {_kind(value)}.", field=field)
    return value


def _native(job_input: dict[str, Any], sampling_names: Collection[str]) -> NativeRequest:
    settled = settle_native(job_input, _Native.model_fields, sampling_names)
    try:
        native = _Native.model_validate(settled.body)
    except ValidationError as error:
        raise _explain(error, {*_Native.model_fields, *sampling_names, "max_tokens"}) from None

    if native.prompt is not None and native.messages is not None:
        raise JobError(Code.INVALID_INPUT, "Give prompt or messages, not both.", field="messages")
    if native.prompt is None and native.messages is None:
        raise JobError(Code.INVALID_INPUT, "Give prompt or messages.", field="prompt")
    if native.prompt is not None and not native.prompt.strip():
        raise JobError(Code.INVALID_INPUT, "prompt is empty.", field="prompt")
    messages = None if native.messages is None else tuple(_flatten(message) for message in native.messages)
    if messages is not None and not any(message.content.strip() for message in messages):
        raise JobError(Code.INVALID_INPUT, "messages hold no text.", field="messages")

    sampling = dict(native.sampling_params or {})
    stream = _stream(native.stream, sampling)
    max_tokens = _max_tokens(sampling.pop("max_tokens", None))
    for name in sampling:
        if name not in sampling_names:
            raise unknown(name, f"sampling_params.{name}", {*sampling_names, "max_tokens", "stream"})
    return NativeRequest(
        prompt=native.prompt,
        messages=messages,
        sampling=sampling,
        max_tokens=max_tokens,
        stream=stream,
        enable_validation=native.enable_validation,
        apply_chat_template=native.apply_chat_template is not False,
        allow_partial=native.allow_partial is True,
        task=native.task,
        adapted=settled.as_dict(),
    )


def _flatten(message: _Message) -> Message:
    content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    return Message(message.role, content)


def _stream(top: bool | None, sampling: dict[str, Any]) -> bool:
    """`stream` is accepted at the top and among the sampling parameters, where clients of older workers put it."""
    inner = sampling.pop("stream", None)
    if inner is not None and not isinstance(inner, bool):
        raise JobError(
            Code.INVALID_INPUT, f"stream must be true or false, not {_kind(inner)}.", field="sampling_params.stream"
        )
    if top is not None and inner is not None and top != inner:
        raise JobError(Code.INVALID_INPUT, f"stream is {top} but sampling_params.stream is {inner}.", field="stream")
    return bool(top or inner)


def _max_tokens(value: object) -> int | None:
    field = "sampling_params.max_tokens"
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise JobError(Code.INVALID_INPUT, f"max_tokens must be a whole number, not {_kind(value)}.", field=field)
    if value < 1:
        raise JobError(Code.INVALID_INPUT, f"max_tokens must be at least 1, not {value}.", field=field)
    return value


def _explain(error: ValidationError, known: Collection[str]) -> JobError:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = _path(fault["loc"])
    if fault["type"] == "extra_forbidden":
        return unknown(str(fault["loc"][-1]), field, known if len(fault["loc"]) == 1 else set())
    message = fault["msg"].removeprefix("Input ").removesuffix(".")
    return JobError(Code.INVALID_INPUT, f"{field} {message[0].lower()}{message[1:]}.", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "str") -> messages[0].content, without the union branch that pydantic appends."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in ("str", "list[_TextPart]"):
            path += f".{step}" if path else step
    return path


def unknown(name: str, field: str, known: Collection[str]) -> JobError:
    """The error for an unknown field, with the known one it resembles."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    advice = f" Did you mean {near[0]}?" if near else ""
    return JobError(Code.UNKNOWN_FIELD, f"{field[:200]} is not a field this worker knows.{advice}", field=field[:200])


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
