"""Engine client proxy: enforces slots and limits, and counts tokens and timings, for requests from vLLM's routes.

vLLM's application answers in its own formats, so the engine's work for a job is measured where the application calls
it. Uses vLLM's objects only by attribute names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import orjson

from llmpod.worker.engine.constraints import begun_within
from llmpod.worker.engine.token_outputs import Detokenizer, TokenOutputs
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import tool_choice
from llmpod.worker.jobs.bounds import LARGE_CHARS
from llmpod.worker.jobs.engine_output import ConstraintError, timings_of
from llmpod.worker.jobs.metering import JobMeter, current_meter, engine_slot, judge, refuse

Value = TypeVar("Value")


def count_cut_requests(engine: Any) -> None:
    """Count the tokens of requests that `engine` aborts, in the meters of their jobs, before it forgets them."""
    abort = engine.abort

    async def counting(request_id: str | Iterable[str], *args: Any, **named: Any) -> None:
        meter = current_meter.get()
        if meter is not None:
            for one in (request_id,) if isinstance(request_id, str) else request_id:
                meter.count_cut(engine.output_processor, one)
        await abort(request_id, *args, **named)

    engine.abort = counting


def keep_failures(serving: Any) -> None:
    """Record in the job's meter why a stream of one of vLLM's serving objects fails.

    The error may be lost afterwards: /v1/messages reads the error event of the chat answer as if it were a part of
    that answer (vllm/entrypoints/anthropic/serving.py).
    """
    event_of = getattr(serving, "create_streaming_error_response", None)
    if event_of is None:
        return

    def noting(*args: Any, **named: Any) -> str:
        event: str = event_of(*args, **named)
        meter = current_meter.get()
        if meter is not None:
            meter.failure = meter.failure or orjson.loads(event)["error"]
        return event

    serving.create_streaming_error_response = noting


BURST = 8
"""Tokens that a parser reads before the event loop goes on: each takes it a tenth of a millisecond."""
ENGINE_ARGUMENTS = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"})
"""What the engine reads from a request's `extra_args` (vllm/v1/request.py): for disaggregated serving, not clients."""


def _check_extra_arguments(given: dict[str, Any], *, custom: bool) -> None:
    """Reject `vllm_xargs` without a custom logits processor: nothing but the engine would read them."""
    refused = ENGINE_ARGUMENTS.intersection(given) if custom else given
    if refused:
        name = min(refused)[:100]
        raise refuse(
            JobError(
                Code.UNSUPPORTED,
                f"{name} is for disaggregated serving, which this worker does not do."
                if name in ENGINE_ARGUMENTS
                else "This worker has no custom logits processor, which alone would read vllm_xargs.",
                field="vllm_xargs",
            )
        )


async def _refusing(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Yield outputs; a JobError fails the current job inside vLLM's application."""
    async with aclosing(outputs):
        try:
            async for output in outputs:
                yield output
        except JobError as error:
            raise refuse(error) from None


Constrain = Callable[[Any, str], Awaitable[None]]

ENGINE_FAILURE = {
    "message": "The engine failed to process this job.",
    "type": "InternalServerError",
    "param": None,
    "code": 500,
}
"""vLLM's error object for a request that the engine gave up; some routes report what they make of its empty answer."""
CLIENTS_FAULTS = frozenset({"VLLMClientError", "ValueError"})
"""Classes of exceptions that vLLM answers with 400 (vllm/entrypoints/serve/exception_handling/error_response.py)."""


class MeteredEngine:
    """An engine client whose `generate` and `encode` take slots, check limits and count tokens."""

    def __init__(
        self,
        engine: Any,
        detokenizer: Callable[[Any, Sequence[int]], Detokenizer],
        *,
        visible: Callable[[list[int]], str] | None = None,
        constrain: Constrain | None = None,
        patience_s: float = 0.0,
        custom_processors: bool = False,
    ) -> None:
        """`detokenizer`: makes one for a request's parameters and prompt.

        `visible`: what the model reads of a prompt that has no text.
        `constrain`: checks the structured output of a request, whose field it is told, or raises a JobError.
        `patience_s`: for how long the engine may prepare for it; 0: for ever.
        `custom_processors`: whether the operator's logits processors read a request's `vllm_xargs`.
        """
        self._engine = engine
        self._detokenizer = detokenizer
        self._visible = visible
        self._constrain = constrain
        self._patience_s = patience_s
        self._custom_processors = custom_processors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Any, params: Any, *args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """The engine's `generate`; max_tokens above the meter's limit is refused, whatever body field set it.

        The next output is fetched when the answer's reader wants more. Until then the engine merges what it produces
        into one output, and so into one event: an event per token costs more than the token. Where the answer is
        parsed, merged outputs are split into single tokens again.
        """
        meter = current_meter.get()
        if meter is None:
            meter = JobMeter()
        if getattr(params, "extra_args", None):
            _check_extra_arguments(params.extra_args, custom=self._custom_processors)
        # A prompt with a text was checked when rendered (renderer.py); some routes create the ids themselves.
        if self._visible is not None and "prompt_token_ids" in prompt and "prompt" not in prompt:
            ids = prompt["prompt_token_ids"]
            await judge(self._visible, ids, aside=len(ids) > LARGE_CHARS // 4)
        if meter.longest_prompt is not None and len(prompt["prompt_token_ids"]) > meter.longest_prompt:
            message = f"The prompt has more than the {meter.longest_prompt} tokens that fit."
            raise refuse(JobError(Code.CONTEXT_LENGTH_EXCEEDED, message, field="query"))
        limit = meter.max_tokens
        if limit is not None and (params.max_tokens is None or params.max_tokens > limit):
            asked = "no limit" if params.max_tokens is None else f"{params.max_tokens} tokens"
            raise refuse(
                JobError(
                    Code.INVALID_INPUT,
                    f"The answer may have {limit} tokens; the route asked the engine for {asked}.",
                    field="max_tokens",
                )
            )
        meter.granted = max(meter.granted or 0, params.max_tokens or 0)
        constraint = getattr(params.structured_outputs, "structural_tag", None)
        if constraint is not None:
            params.structured_outputs.structural_tag = tool_choice.bounded(constraint)
        if params.structured_outputs is not None and self._constrain is not None:
            field = meter.constraint if constraint is None else meter.calls
            try:
                await self._constrain(params.structured_outputs, field or "structured_outputs")
            except JobError as error:
                raise refuse(error) from None
        meter.requests += 1
        request_id = str(args[0] if args else named.get("request_id", meter.requests))
        output_kind = getattr(params.output_kind, "name", "")
        by_token = meter.parsed and output_kind == "DELTA"
        parsed = TokenOutputs(partial(self._detokenizer, params)) if by_token else None
        outputs = self._engine.generate(salted(prompt, meter), params, *args, **traced(named, meter))
        if params.structured_outputs is not None:
            outputs = _refusing(begun_within(self._patience_s, outputs))
        try:
            async with engine_slot(meter, getattr(params, "n", None) or 1), aclosing(outputs):
                async for output in outputs:
                    for choice in output.outputs:
                        if choice.finish_reason == "error":
                            if params.structured_outputs is not None:
                                raise ConstraintError
                            meter.failure = ENGINE_FAILURE
                        meter.finish_reason = meter.finish_reason or choice.finish_reason
                        meter.cut = meter.cut or choice.finish_reason == "length"
                    meter.count(request_id, output, cumulative=output_kind == "CUMULATIVE")
                    if output.finished:
                        meter.finished += 1
                        if meter.timings is None and output.metrics is not None:
                            meter.timings = timings_of(output.metrics)
                    if not meter.show_cached_tokens:
                        output.num_cached_tokens = output.num_cache_creation_tokens = None
                    if parsed is None:
                        yield output
                    else:
                        meter.splitting = True
                        for count, one in enumerate(parsed.split(output)):
                            if count and count % BURST == 0:
                                await asyncio.sleep(0)
                            yield one
                        meter.splitting = False
                    if not output.finished and meter.wanted is not None:
                        await meter.wanted.wait()
        except Exception as error:
            # vLLM answers these with 400, but not on every route once its answer has begun.
            if meter.failure is None and not CLIENTS_FAULTS.isdisjoint(kind.__name__ for kind in type(error).__mro__):
                parameter = getattr(error, "parameter", None)
                meter.failure = {"message": str(error), "type": "BadRequestError", "param": parameter, "code": 400}
            raise

    async def encode(self, prompt: Any, *args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """The engine's `encode`: one input to embed, score or classify."""
        meter = current_meter.get() or JobMeter()
        async with (
            engine_slot(meter, 1),
            aclosing(self._engine.encode(salted(prompt, meter), *args, **traced(named, meter))) as outputs,
        ):
            async for output in outputs:
                yield output


def salted(prompt: Any, meter: JobMeter | None) -> Any:
    """Set the job's cache salt in vLLM's engine input, replacing a client's; the decoder's input is the one used."""
    if meter is None or meter.cache_salt is None:
        return prompt
    if "decoder_prompt" in prompt:
        return prompt | {"decoder_prompt": salted(prompt["decoder_prompt"], meter)}
    return prompt | {"cache_salt": meter.cache_salt}


def traced(named: dict[str, Any], meter: JobMeter) -> dict[str, Any]:
    """Make vLLM's span a child of the job's: a client of a job has no headers to send."""
    return named if meter.trace_headers is None else named | {"trace_headers": meter.trace_headers}


class Bounded(dict[str, Value]):
    """Dictionary with a maximum size that drops its oldest entry: vLLM keeps stored responses for ever."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: str, value: Value) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        while len(self) > self._limit:
            del self[next(iter(self))]
