"""Metering of a job: limits, slots and token counts, shared by all engine requests of the job.

The engine and vLLM's application run in the context of a job: `current_meter` is its meter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.engine_output import Timings
from llmpod.worker.jobs.slots import Slot
from llmpod.worker.settings import Settings

Value = TypeVar("Value")

PendingCheck = Callable[[], Awaitable[None]]
"""What is left to check of a prompt, in the event loop; raises JobError."""
PromptJudge = Callable[[str], PendingCheck | None]
"""Checks a prompt's visible text; raises JobError. May be called in a thread."""


@dataclass
class JobMeter:
    """Limits and counts of one job, over all engine requests that are made for it."""

    max_tokens: int | None = None
    cache_salt: str | None = None  # key of the job's part of the prefix cache; None: shared with all jobs
    show_cached_tokens: bool = False  # whether the client may know how much of its prompt was in the cache
    granted: int | None = None  # largest max_tokens of a request; a long prompt leaves less context for the answer
    longest_prompt: int | None = None  # tokens; where vLLM would cut a longer prompt instead of refusing it
    small: bool = False  # reading its input takes less than a millisecond
    parsed: bool = False  # vLLM parses tool calls or reasoning
    judge: PromptJudge | None = None
    constraint: str | None = None  # the field with the structured output
    calls: str | None = None  # the field with the structural tag of tool calls
    wanted: asyncio.Event | None = None  # set while the reader waits for more of the answer
    splitting: bool = False  # what the engine has made is given to a parser token by token
    trace_headers: dict[str, str] | None = None  # the job's span, for vLLM's; None: no traces
    requests: int = 0
    finished: int = 0  # of them
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: dict[str, dict[int, int]] = field(default_factory=dict)  # tokens, by request and answer
    finish_reason: str | None = None
    cut: bool = False  # max_tokens ended one of the answers
    timings: Timings | None = None  # of the first request that finished
    refusal: JobError | None = None  # why the worker refused it inside vLLM's application
    failure: dict[str, Any] | None = None  # vLLM's error object, as it was made when a stream failed
    take: Callable[..., Awaitable[Slot]] | None = None  # Slots.take
    most: int | None = None  # most answers and inputs in the engine, or queued for it, at once
    submitted: float | None = None  # monotonic seconds, when its first request got a slot
    _at_once: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def begin(self, settings: Settings, job_id: str, take: Callable[..., Awaitable[Slot]]) -> Self:
        """Set the job's id and the function that takes slots; returns the meter."""
        self.cache_salt = job_id if settings.isolate_prefix_cache else None
        self.show_cached_tokens = settings.show_cached_tokens
        self.take = take
        return self

    @asynccontextmanager
    async def slot(self, weight: int) -> AsyncGenerator[None, None]:
        """Hold `weight` slots for one engine request with so many answers.

        The requests of a job queue for slots one at a time: of a job with a thousand inputs, one waits in the queue of
        all jobs, so other jobs wait for one of them only.

        Raises:
            JobError: the job makes more requests than it may, or the worker stayed full for MAX_QUEUE_WAIT.
        """
        self._at_once += weight
        slot: Slot | None = None
        try:
            if self.most is not None and self._at_once > self.most:
                raise JobError(Code.INVALID_INPUT, f"The job asks for more than {self.most} answers or inputs at once.")
            if self.take is not None:
                async with self._turn:
                    if self.refusal is not None:
                        raise self.refusal
                    slot = await self.take(weight, begun=self.submitted is not None)
            self.submitted = self.submitted or time.monotonic()
            yield
        finally:
            if slot is not None:
                slot.release()
            self._at_once -= weight

    @asynccontextmanager
    async def judge_slot(self) -> AsyncGenerator[None, None]:
        """Hold a slot for a question about the job's own prompt, which is none of its answers.

        Raises:
            JobError: the worker stayed full for MAX_QUEUE_WAIT.
        """
        async with AsyncExitStack() as stack:
            if self.take is not None:
                async with self._turn:
                    stack.enter_context(await self.take(1))
            yield

    def continues(self) -> bool:
        """Whether more of the answer may follow within the next iterations of the event loop."""
        return self.splitting or self.requests != 1

    def ended(self) -> bool:
        """Whether the engine has finished all requests that were made so far."""
        return 0 < self.requests == self.finished

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(sum(answers.values()) for answers in self.generated.values())

    def count(self, request_id: str, output: Any, *, cumulative: bool = False) -> int:
        """Count the tokens of vLLM's RequestOutput (an answer's total or the new ones); returns the request's total."""
        so_far = self._known(request_id, len(output.prompt_token_ids or ()), output.num_cached_tokens or 0)
        for choice in output.outputs:
            before = 0 if cumulative else so_far.get(choice.index, 0)
            so_far[choice.index] = before + len(choice.token_ids)
        return sum(so_far.values())

    def count_cut(self, processor: Any, request_id: str) -> None:
        """Count the tokens of a request, read or not, from vLLM's output processor before it is aborted."""
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


current_meter: ContextVar[JobMeter | None] = ContextVar("current_meter", default=None)
"""The meter of the job in whose context the engine or the application works; its tasks inherit it."""


class RequestRefusedError(ValueError):
    """Ends a request inside vLLM's application, which answers a ValueError with 400; the job fails with its cause."""


def refuse(error: JobError) -> RequestRefusedError:
    """Return the exception that, raised inside vLLM's application, fails the current job with `error`."""
    meter = current_meter.get()
    if meter is not None:
        meter.refusal = meter.refusal or error
    return RequestRefusedError(error.message)


@asynccontextmanager
async def engine_slot(meter: JobMeter, weight: int) -> AsyncGenerator[None, None]:
    """JobMeter.slot for use inside vLLM's application: a JobError is raised as RequestRefusedError."""
    held = meter.slot(weight)
    try:
        await held.__aenter__()
    except JobError as error:
        raise refuse(error) from None
    try:
        yield
    finally:
        await held.__aexit__(None, None, None)


def judges() -> bool:
    """Whether the current job has guardrails for rendered prompts."""
    meter = current_meter.get()
    return meter is not None and meter.judge is not None


async def judge(visible: Callable[[Value], str], prompt: Value, *, aside: bool = False) -> None:
    """Apply the current job's guardrails to a prompt, inside vLLM's application; `visible` returns its text.

    `aside`: read it in a thread.

    Raises:
        RequestRefusedError: they refuse it.
    """
    meter = current_meter.get()
    if meter is None or meter.judge is None:
        return
    check = meter.judge
    try:
        pending = await asyncio.to_thread(lambda: check(visible(prompt))) if aside else check(visible(prompt))
        if pending is not None:
            await pending()
    except JobError as error:
        raise refuse(error) from None
