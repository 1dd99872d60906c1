"""Parser of job inputs: job["input"] -> a typed request, or an error that names the field.

Three shapes are accepted: native (`prompt` or `messages`), OpenAI (`openai_route`) and route (`route`). The keys decide
which one it is, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.client_fields import resembles, unknown
from llmpod.worker.jobs.json_walk import path_of
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
class RouteRequest:
    """A call of one of vLLM's routes: by RunPod's /openai proxy, or in the form of other workers' clients (`route`)."""

    shape: Literal["openai_route", "route"]  # the field that holds the route
    route: str  # as the client wrote it; checked by route_catalog
    body: dict[str, Any] | None  # None: that of a GET, which is absent, null or {}
    method: str | None = None  # None: chosen from the route and the body

    @property
    def stream(self) -> bool:
        """Whether the answer comes as server-sent events."""
        return self.body is not None and self.body.get("stream") is True


Request = NativeRequest | RouteRequest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Role
    content: str | Annotated[list[_TextPart], Field(fail_fast=True)]


class _Sampling(BaseModel):
    """What is read here of the sampling parameters; the others are the engine's."""

    model_config = ConfigDict(extra="allow", strict=True)

    max_tokens: PositiveInt | None = None
    stream: bool | None = None  # where clients of older workers put it


class _Native(_Strict):
    prompt: str | None = None
    messages: Annotated[list[_Message], Field(fail_fast=True)] | None = None
    sampling_params: _Sampling | None = None
    stream: bool | None = None
    enable_validation: bool | None = None
    apply_chat_template: bool | None = None
    allow_partial: bool | None = None
    task: str | None = None


_NATIVE_FIELDS = frozenset(_Native.model_fields)
_ROUTE_FIELDS = frozenset({"route", "body", "method"})


def parse(job_input: object, sampling_names: Collection[str]) -> Request:
    """Parse a job's input that has passed bounds.py.

    `sampling_names` are the sampling parameters a client may set; the engine knows them.

    Raises:
        JobError: the input has no known shape, a field of the wrong type, or an unknown field.
    """
    if not isinstance(job_input, dict):
        raise JobError(Code.INVALID_INPUT, "input must be an object.", field="input")
    if "openai_route" in job_input:  # RunPod's proxy writes this shape, so unknown keys beside it are accepted
        return _route(job_input, "openai_route", "openai_input")
    if "route" in job_input:
        if others := job_input.keys() - _ROUTE_FIELDS:
            raise _unknown(min(others), min(others), _ROUTE_FIELDS)
        return _route(job_input, "route", "body", job_input.get("method"))
    settled = settle_native(job_input, _NATIVE_FIELDS, sampling_names)
    try:
        native = _Native.model_validate(settled.body)
    except ValidationError as error:
        raise _explain(error, {*_NATIVE_FIELDS, *sampling_names, "max_tokens"}) from None
    return _native(native, settled.as_dict(), sampling_names)


def _route(
    job_input: dict[str, Any], shape: Literal["openai_route", "route"], body_name: str, method: object = None
) -> RouteRequest:
    route, body = job_input[shape], job_input.get(body_name)
    if not isinstance(route, str):
        raise JobError(Code.INVALID_INPUT, f"{shape} must be text.", field=shape)
    if not isinstance(body, dict | None):
        raise JobError(Code.INVALID_INPUT, f"{body_name} must be an object.", field=body_name)
    if not isinstance(method, str | None):
        raise JobError(Code.INVALID_INPUT, "method must be text.", field="method")
    return RouteRequest(shape, route, body or None, method and method.upper())


def _native(native: _Native, adapted: Mapping[str, Any], sampling_names: Collection[str]) -> NativeRequest:
    if (native.prompt is None) == (native.messages is None):
        both = native.prompt is not None
        message = "Give prompt or messages, not both." if both else "Give prompt or messages."
        raise JobError(Code.INVALID_INPUT, message, field="messages" if both else "prompt")
    given = native.sampling_params or _Sampling()
    inner, sampling = given.stream, given.model_extra or {}
    if native.stream is not None and inner is not None and native.stream != inner:
        message = f"stream is {native.stream} but sampling_params.stream is {inner}."
        raise JobError(Code.INVALID_INPUT, message, field="stream")
    for name in sampling:
        if name not in sampling_names:
            raise _unknown(name, f"sampling_params.{name}", {*sampling_names, "max_tokens", "stream"})
    request = NativeRequest(
        prompt=native.prompt,
        messages=None if native.messages is None else tuple(_flatten(message) for message in native.messages),
        sampling=sampling,
        max_tokens=given.max_tokens,
        stream=bool(native.stream or inner),
        enable_validation=native.enable_validation,
        apply_chat_template=native.apply_chat_template is not False,
        allow_partial=native.allow_partial is True,
        task=native.task,
        adapted=adapted,
    )
    if not any(map(str.strip, request.texts)):
        raise JobError(Code.INVALID_INPUT, f"There is no text in {request.prompt_field}.", field=request.prompt_field)
    return request


def _flatten(message: _Message) -> Message:
    content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    return Message(message.role, content)


def _explain(error: ValidationError, known: Collection[str]) -> JobError:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    first, *rest = fault["loc"]
    field = path_of((first, *(step for step in rest if step not in ("str", "list[_TextPart]"))))  # a union's branches
    if fault["type"] == "extra_forbidden":
        return _unknown(str(fault["loc"][-1]), field, () if rest else known)
    message = fault["msg"].removeprefix("Input ").removesuffix(".")
    return JobError(Code.INVALID_INPUT, f"{field} {message[0].lower()}{message[1:]}.", field=field)


def _unknown(name: str, field: str, known: Collection[str]) -> JobError:
    return unknown(field, f"{field[:200]} is not a field this worker knows.", resembles(name, known, cutoff=0.7))
