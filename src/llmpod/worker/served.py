"""What stands between vLLM's application and the engine: slots, the last limits, and the engine's own figures.

The application is vLLM's and answers in shapes of its own; so what the engine really did for a job is read where the
application calls it. Knows vLLM's objects only by the names it reads from them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import orjson

from llmpod.worker import tools
from llmpod.worker.admission import Slot
from llmpod.worker.constraints import begun_within
from llmpod.worker.errors import Code, JobError
from llmpod.worker.generation import ConstraintError, Timings, timings_of
from llmpod.worker.settings import Settings
from llmpod.worker.token_outputs import Detokenizer, TokenOutputs

Value = TypeVar("Value")


@dataclass
class Watch:
    """What one job may use, and what the engine has done so far for all the requests that are made of the job."""

    max_tokens: int | None = None
    cache_salt: str | None = None  # what the job's prompts share the prefix cache under; None: with all other jobs
    show_cached_tokens: bool = False  # whether the client may know how much of its prompt was in the cache
    granted: int | None = None  # the most that a request was given: a long prompt leaves less room for the answer
    parsed: bool = False  # vLLM reads tool calls or reasoning out of the answer
    judge: Callable[[str], None] | None = None  # takes what the model reads of a prompt; raises JobError to refuse it
    constraint: str | None = None  # the field that bounds the form of the answer
    calls: str | None = None  # the field that bounds the form of its calls
    wanted: asyncio.Event | None = None  # set while somebody waits for more of the answer
    requests: int = 0
    finished: int = 0  # of them
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: dict[str, dict[int, int]] = field(default_factory=dict)  # tokens, by request and answer
    finish_reason: str | None = None
    cut: bool = False  # max_tokens ended one of the answers
    timings: Timings | None = None  # of the first request that finished
    refusal: JobError | None = None  # why the worker refused it while vLLM's application was at work
    failure: dict[str, Any] | None = None  # vLLM's error object, as it was made when a stream failed
    take: Callable[[int], Awaitable[Slot]] | None = None  # waits for that many seats
    most: int | None = None  # answers and inputs that it may have in the engine, and before it, at once
    submitted: float | None = None  # monotonic seconds, when its first request got a slot
    _at_once: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def begin(self, settings: Settings, job_id: str, take: Callable[[int], Awaitable[Slot]]) -> Self:
        """Itself, once it is known which job it is for."""
        self.cache_salt = job_id if settings.isolate_prefix_cache else None
        self.show_cached_tokens = settings.show_cached_tokens
        self.take = take
        return self

    @asynccontextmanager
    async def slot(self, seats: int) -> AsyncGenerator[None, None]:
        """The slot of one engine request with so many answers.

        The requests of a job queue for their slots one after the other: of a job with a thousand inputs, one stands in
        the line, and other jobs wait for that one only.

        Raises:
            JobError: the job makes more requests than it may, or the worker stayed full for MAX_QUEUE_WAIT.
        """
        self._at_once += seats
        try:
            if self.most is not None and self._at_once > self.most:
                raise JobError(Code.INVALID_INPUT, f"The job asks for more than {self.most} answers or inputs at once.")
            async with AsyncExitStack() as stack:
                if self.take is not None:
                    async with self._turn:
                        if self.refusal is not None:
                            raise self.refusal
                        stack.enter_context(await self.take(seats))
                self.submitted = self.submitted or time.monotonic()
                yield
        finally:
            self._at_once -= seats

    def ended(self) -> bool:
        """Whether the engine has nothing more to say, as far as it has been asked."""
        return 0 < self.requests == self.finished

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(sum(answers.values()) for answers in self.generated.values())

    def count(self, request_id: str, output: Any, *, cumulative: bool = False) -> int:
        """Take in vLLM's RequestOutput, which has all of an answer's tokens or the new ones; the request's so far."""
        so_far = self._known(request_id, len(output.prompt_token_ids or ()), output.num_cached_tokens or 0)
        for choice in output.outputs:
            before = 0 if cumulative else so_far.get(choice.index, 0)
            so_far[choice.index] = before + len(choice.token_ids)
        return sum(so_far.values())

    def count_cut(self, processor: Any, request_id: str) -> None:
        """Take in what a request has produced, read or not, from vLLM's output processor, before it is aborted."""
        parent = processor.parent_requests.get(request_id)
        ids: Iterable[str] = (request_id,) if parent is None else parent.child_requests
        for state in filter(None, map(processor.request_states.get, ids)):
            if state.detokenizer is not None and not state.is_prefilling:
                so_far = self._known(state.external_req_id, state.prompt_len, state.num_cached_tokens)
                so_far[state.request_index] = state.detokenizer.num_output_tokens()
        for answer in filter(None, parent.output_aggregator if parent is not None else ()):
            self._known(parent.external_req_id, 0, 0)[answer.index] = len(answer.token_ids)

    def _known(self, request_id: str, prompt_tokens: int, cached_tokens: int) -> dict[int, int]:
        """The counts of a request's answers; its prompt is counted with the first output."""
        if request_id not in self.generated:
            self.generated[request_id] = {}
            self.prompt_tokens += prompt_tokens
            self.cached_tokens += cached_tokens
        return self.generated[request_id]


current: ContextVar[Watch | None] = ContextVar("current", default=None)
"""The watch of the job in whose context the engine or the application works; its tasks inherit it."""


def count_cut_requests(engine: Any) -> None:
    """Have the watches of `engine`'s jobs count what was produced when it aborts a request: it is forgotten then."""
    abort = engine.abort

    async def counting(request_id: str | Iterable[str], *args: Any, **named: Any) -> None:
        watch = current.get()
        if watch is not None:
            for one in (request_id,) if isinstance(request_id, str) else request_id:
                watch.count_cut(engine.output_processor, one)
        await abort(request_id, *args, **named)

    engine.abort = counting


class RequestRefusedError(ValueError):
    """Ends a request inside vLLM's application, which answers a ValueError with 400; the job fails with the cause."""


def refuse(error: JobError) -> RequestRefusedError:
    """The exception to raise inside vLLM's application so that the job at work fails with `error`."""
    watch = current.get()
    if watch is not None:
        watch.refusal = watch.refusal or error
    return RequestRefusedError(error.message)


def keep_failures(serving: Any) -> None:
    """Have one of vLLM's serving objects note why a stream fails.

    What is made of the stream afterwards may not carry it: /v1/messages reads the error event of the chat answer as if
    it were a part of that answer (vllm/entrypoints/anthropic/serving.py).
    """
    event_of = getattr(serving, "create_streaming_error_response", None)
    if event_of is None:
        return

    def noting(*args: Any, **named: Any) -> str:
        event: str = event_of(*args, **named)
        watch = current.get()
        if watch is not None:
            watch.failure = watch.failure or orjson.loads(event)["error"]
        return event

    serving.create_streaming_error_response = noting


@asynccontextmanager
async def _slot(watch: Watch, seats: int) -> AsyncGenerator[None, None]:
    """As the watch's, inside vLLM's application."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(watch.slot(seats))
        except JobError as error:
            raise refuse(error) from None
        yield


def judges() -> bool:
    """Whether the job at work has guardrails to judge its prompts."""
    watch = current.get()
    return watch is not None and watch.judge is not None


def judge(visible: Callable[[Value], str], prompt: Value) -> None:
    """Have the job's guardrails judge a prompt inside vLLM's application; `visible`: its text as the model reads it.

    Raises:
        RequestRefusedError: they refuse it.
    """
    watch = current.get()
    if watch is None or watch.judge is None:
        return
    try:
        watch.judge(visible(prompt))
    except JobError as error:
        raise refuse(error) from None


ENGINE_ARGUMENTS = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"})
"""What the engine itself reads from a request's `extra_args` (vllm/v1/request.py): for split serving, no client's."""


def _check_extra_arguments(given: dict[str, Any], *, custom: bool) -> None:
    """A client's `vllm_xargs` are for `custom` logits processors; without one, only the engine would read them."""
    refused = ENGINE_ARGUMENTS.intersection(given) if custom else given
    if refused:
        name = min(refused)[:100]
        raise refuse(
            JobError(
                Code.UNSUPPORTED,
                f"{name} belongs to split serving, not here."
                if name in ENGINE_ARGUMENTS
                else "This worker has no custom logits processor, which alone would read vllm_xargs.",
                field="vllm_xargs",
            )
        )


async def _refusing(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The outputs, whose JobError fails the job at work inside vLLM's application."""
    async with aclosing(outputs):
        try:
            async for output in outputs:
                yield output
        except JobError as error:
            raise refuse(error) from None


Constrain = Callable[[Any, str], Awaitable[None]]

CLIENTS_FAULTS = frozenset({"VLLMClientError", "ValueError"})
"""Classes of exceptions that vLLM answers with 400 (vllm/entrypoints/serve/exception_handling/error_response.py)."""


class WatchedEngine:
    """An engine client whose requests take slots, and which checks and counts `generate`; else the engine itself."""

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
        """As the engine's, but a request beyond the watch's limit is refused, whatever a body's field was called.

        The next output is fetched when the answer's reader wants more. Until then the engine merges what it produces
        into one output, which the application makes one event of: events per token cost more than the tokens. Where the
        answer is parsed, the application gets the tokens of a merged output one by one all the same.
        """
        watch = current.get()
        if watch is None:
            watch = Watch()
        if getattr(params, "extra_args", None):
            _check_extra_arguments(params.extra_args, custom=self._custom_processors)
        # A prompt with a text has been judged when it was rendered (renderer.py); some routes make the ids themselves.
        if self._visible is not None and "prompt_token_ids" in prompt and "prompt" not in prompt:
            judge(self._visible, prompt["prompt_token_ids"])
        limit = watch.max_tokens
        if limit is not None and (params.max_tokens is None or params.max_tokens > limit):
            asked = "no limit" if params.max_tokens is None else f"{params.max_tokens} tokens"
            raise refuse(
                JobError(
                    Code.INVALID_INPUT,
                    f"The answer may have {limit} tokens; the route asked the engine for {asked}.",
                    field="max_tokens",
                )
            )
        watch.granted = max(watch.granted or 0, params.max_tokens or 0)
        constraint = getattr(params.structured_outputs, "structural_tag", None)
        if constraint is not None:
            params.structured_outputs.structural_tag = tools.bounded(constraint)
        if params.structured_outputs is not None and self._constrain is not None:
            field = watch.constraint if constraint is None else watch.calls
            try:
                await self._constrain(params.structured_outputs, field or "structured_outputs")
            except JobError as error:
                raise refuse(error) from None
        watch.requests += 1
        request_id = str(args[0] if args else named.get("request_id", watch.requests))
        output_kind = getattr(params.output_kind, "name", "")
        by_token = watch.parsed and output_kind == "DELTA"
        parsed = TokenOutputs(partial(self._detokenizer, params)) if by_token else None
        outputs = self._engine.generate(salted(prompt, watch), params, *args, **named)
        if params.structured_outputs is not None:
            outputs = _refusing(begun_within(self._patience_s, outputs))
        try:
            async with _slot(watch, getattr(params, "n", None) or 1), aclosing(outputs):
                async for output in outputs:
                    for choice in output.outputs:
                        if choice.finish_reason == "error" and params.structured_outputs is not None:
                            raise ConstraintError
                        watch.finish_reason = watch.finish_reason or choice.finish_reason
                        watch.cut = watch.cut or choice.finish_reason == "length"
                    watch.count(request_id, output, cumulative=output_kind == "CUMULATIVE")
                    if output.finished:
                        watch.finished += 1
                        if watch.timings is None and output.metrics is not None:
                            watch.timings = timings_of(output.metrics)
                    if not watch.show_cached_tokens:
                        output.num_cached_tokens = output.num_cache_creation_tokens = None
                    for count, one in enumerate((output,) if parsed is None else parsed.split(output)):
                        if count:  # a parser takes its time, and hundreds of tokens may have been merged
                            await asyncio.sleep(0)
                        yield one
                    if not output.finished and watch.wanted is not None:
                        await watch.wanted.wait()
        except Exception as error:
            # vLLM answers these with 400, but not on every route once its answer has begun.
            if watch.failure is None and not CLIENTS_FAULTS.isdisjoint(kind.__name__ for kind in type(error).__mro__):
                parameter = getattr(error, "parameter", None)
                watch.failure = {"message": str(error), "type": "BadRequestError", "param": parameter, "code": 400}
            raise

    async def encode(self, prompt: Any, *args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """As the engine's: one input that is embedded, scored or classified."""
        watch = current.get() or Watch()
        async with _slot(watch, 1), aclosing(self._engine.encode(salted(prompt, watch), *args, **named)) as outputs:
            async for output in outputs:
                yield output


def salted(prompt: Any, watch: Watch | None) -> Any:
    """vLLM's engine input with the job's salt in place of a client's; the decoder's is the one that counts."""
    if watch is None or watch.cache_salt is None:
        return prompt
    if "decoder_prompt" in prompt:
        return prompt | {"decoder_prompt": salted(prompt["decoder_prompt"], watch)}
    return prompt | {"cache_salt": watch.cache_salt}


class Bounded(dict[str, Value]):
    """A dictionary that forgets its oldest entry when it is full: vLLM keeps stored responses for ever."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: str, value: Value) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        while len(self) > self._limit:
            del self[next(iter(self))]
