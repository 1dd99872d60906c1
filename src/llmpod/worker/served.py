"""What stands between vLLM's application and the engine: the last limits, and the engine's own figures.

The application is vLLM's and answers in shapes of its own; so what the engine really did for a job is read where the
application calls it. Knows vLLM's objects only by the names it reads from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from llmpod.worker import tools
from llmpod.worker.errors import JobError
from llmpod.worker.generation import ConstraintError, Timings, timings_of


@dataclass
class Watch:
    """What one job may use, and what the engine did for it, over all the requests that its route makes of it."""

    max_tokens: int | None = None
    wanted: asyncio.Event | None = None  # set while somebody waits for more of the answer
    requests: int = 0
    finished: int = 0  # of them
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    timings: Timings | None = None  # of the first request that finished
    refusal: JobError | None = None  # why the worker refused it while vLLM's application was at work

    def ended(self) -> bool:
        """Whether the engine has nothing more to say, as far as it has been asked."""
        return 0 < self.requests == self.finished


current: ContextVar[Watch | None] = ContextVar("current", default=None)
"""The watch of the job in whose context the application runs; its tasks inherit it."""


class RequestRefusedError(ValueError):
    """Ends a request inside vLLM's application, which answers a ValueError with 400; the job fails with the cause."""


def refuse(error: JobError) -> RequestRefusedError:
    """The exception to raise inside vLLM's application so that the job at work fails with `error`."""
    watch = current.get()
    if watch is not None:
        watch.refusal = watch.refusal or error
    return RequestRefusedError(error.message)


class WatchedEngine:
    """An engine client that limits and counts `generate` and is the engine itself in everything else."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Any, params: Any, *args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """As the engine's, with the watch's limit: whatever a body's field was called, it ends here.

        The next output is fetched when the answer's reader wants more. Until then the engine merges what it produces
        into one output, which the application makes one event of: events per token cost more than the tokens.
        """
        watch = current.get()
        if watch is None:
            watch = Watch()
        limit = watch.max_tokens
        if limit is not None and (params.max_tokens is None or params.max_tokens > limit):
            params.max_tokens = limit
        constraint = getattr(params.structured_outputs, "structural_tag", None)
        if constraint is not None:
            params.structured_outputs.structural_tag = tools.bounded(constraint)
        watch.requests += 1
        tokens: dict[int, int] = {}
        cumulative = getattr(params.output_kind, "name", "") == "CUMULATIVE"
        async with aclosing(self._engine.generate(prompt, params, *args, **named)) as outputs:
            async for output in outputs:
                for choice in output.outputs:
                    if choice.finish_reason == "error" and params.structured_outputs is not None:
                        raise ConstraintError
                    so_far = 0 if cumulative else tokens.get(choice.index, 0)
                    tokens[choice.index] = so_far + len(choice.token_ids)
                    watch.finish_reason = watch.finish_reason or choice.finish_reason
                if output.finished:
                    watch.finished += 1
                    watch.prompt_tokens += len(output.prompt_token_ids or ())
                    watch.completion_tokens += sum(tokens.values())
                    watch.cached_tokens += output.num_cached_tokens or 0
                    if watch.timings is None and output.metrics is not None:
                        watch.timings = timings_of(output.metrics)
                yield output
                if not output.finished and watch.wanted is not None:
                    await watch.wanted.wait()


Value = TypeVar("Value")


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
