"""Generation with a loaded model: rendered prompts, sampling parameters, structured outputs, steps of an answer.

Only this folder imports vllm, and it does so inside functions: the import takes seconds, and importing a module here
must cost nothing. Which of its names are used, and how, is held by tests/worker/engine/test_vllm_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmpod.worker.engine import sampling
from llmpod.worker.engine.app import metered_engine
from llmpod.worker.engine.constraints import ConstraintCompiler, begun_within
from llmpod.worker.engine.prompts import Prompts
from llmpod.worker.engine.sampling import Sampling
from llmpod.worker.errors import Code, JobError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs import engine_output, limits, metering
from llmpod.worker.jobs.bounds import LARGE_CHARS
from llmpod.worker.jobs.engine_output import Step
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.settings import Settings

CHOICE_TOKENS = 16
"""max_tokens of an answer that is one of a few words."""


class Steps:
    """When the engine last finished a step."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def count(self) -> None:
        """The engine has finished one now."""
        self.last = time.monotonic()

    def observer(self) -> Any:
        """A vLLM "stat logger" that counts them (vllm/v1/metrics/loggers.py)."""
        from vllm.v1.metrics.loggers import AggregateStatLoggerBase

        steps = self

        class StepObserver(AggregateStatLoggerBase):  # type: ignore[misc] # vLLM is not typed for us
            def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
                pass

            def record(self, *args: Any, **kwargs: Any) -> None:
                steps.count()

            def log_engine_initialized(self) -> None:
                pass

        return StepObserver

    @staticmethod
    def alone(llm: Any) -> None:
        """Remove vLLM's own log of statistics, which sums up every step for lines that nobody asks for here."""
        from vllm.v1.metrics.loggers import LoggingStatLogger

        def is_log(one: Any) -> bool:
            made = vars(one).get("per_engine_stat_loggers", {})
            return any(isinstance(each, LoggingStatLogger) for each in made.values())

        if llm.logger_manager is not None:  # DISABLE_LOG_STATS
            llm.logger_manager.stat_loggers = [one for one in llm.logger_manager.stat_loggers if not is_log(one)]


@dataclass(frozen=True)
class Loaded:
    """A loaded model, and what its jobs need. `llm`: vLLM's AsyncLLMEngine, bound to the event loop that made it."""

    settings: Settings
    emit: Emit
    llm: Any
    prompts: Prompts
    longest_token: int  # in characters
    sampling: Sampling
    constraints: ConstraintCompiler
    steps: Steps


class Generation:
    """Native requests to a loaded model."""

    def __init__(self, loaded: Loaded) -> None:
        self._settings = loaded.settings
        self._emit = loaded.emit
        self._llm = loaded.llm
        self._prompts = loaded.prompts
        self._sampling = loaded.sampling
        self._constraints = loaded.constraints
        self._steps = loaded.steps
        config = loaded.llm.model_config
        self.model_name = loaded.settings.served_name
        # Otherwise it is a pooling runner, which embeds, scores and classifies.
        self.generates: bool = config.runner_type == "generate"
        self.max_model_len: int = config.max_model_len
        self.max_num_seqs: int = loaded.llm.vllm_config.scheduler_config.max_num_seqs
        self.sampling_names = loaded.sampling.names
        self.sampling_defaults = loaded.sampling.values_without_effect  # the value of each that changes nothing
        self.context = limits.Context(self.max_model_len, loaded.longest_token)

    async def render(self, request: NativeRequest) -> list[int]:
        """Render a request to token ids. Long prompts, and many messages, are tokenised in a thread.

        Raises:
            JobError: the model's chat template or the job's guardrails refuse it, or the model does not generate.
        """
        if not self.generates:
            raise JobError(
                Code.UNSUPPORTED, "This worker embeds and scores (RUNNER=pooling): call its routes, /v1/embeddings …"
            )
        large = request.chars > LARGE_CHARS or len(request.messages or ()) > 200
        ids, pending = await asyncio.to_thread(self._render, request) if large else self._render(request)
        if pending is not None:
            await pending()
        return ids

    def _render(self, request: NativeRequest) -> tuple[list[int], metering.PendingCheck | None]:
        """Render a request and apply the guardrails of the job at work; returns what is left to check."""
        ids, text = self._prompts.rendered(request)
        meter = metering.current_meter.get()
        return ids, meter.judge(text) if meter is not None and meter.judge is not None else None

    async def choose(self, turns: Sequence[tuple[str, str]], choices: Sequence[str], request_id: str) -> str:
        """Ask the model for one of `choices`, at temperature 0. `turns`: (role, content), whose texts are guarded.

        None of the job's limits and counts apply. It takes no slot.

        Raises:
            JobError: the question does not fit the model's context, or the engine failed at it.
        """
        chars = sum(len(content) for _, content in turns)
        ids = await asyncio.to_thread(self._prompts.asked, turns) if chars > LARGE_CHARS else self._prompts.asked(turns)
        limits.fit_context(limits.MaxTokens(None, CHOICE_TOKENS), len(ids), self.max_model_len)
        given = {"temperature": 0.0, "structured_outputs": {"choice": list(choices)}, "max_tokens": CHOICE_TOKENS}
        params = self._sampling.exactly(given)
        await self.constrain(params)
        job = metering.current_meter.get()
        meter = metering.JobMeter(cache_salt=job.cache_salt if job is not None else None)
        before = metering.current_meter.set(meter)
        try:
            async with contextlib.aclosing(self.generate(ids, params, request_id, at_once=True)) as steps:
                return "".join([delta.text async for step in steps for delta in step.deltas])
        finally:
            metering.current_meter.reset(before)

    def sampling(self, given: Mapping[str, Any], max_tokens: int, *, stream: bool) -> Any:
        """vLLM's SamplingParams: the client's values over the operator's over the model's own.

        Raises:
            JobError: a value of the wrong type or range, by name.
        """
        return self._sampling.params(given, max_tokens, stream=stream)

    async def constrain(self, params: Any) -> None:
        """Check the structured output of a native request, before it takes a slot.

        Raises:
            JobError: the engine could not follow it within the limits.
        """
        if params.structured_outputs is not None:
            await self._constraints.apply(params.structured_outputs, "sampling_params.structured_outputs")

    async def generate(
        self, prompt_ids: list[int], params: Any, request_id: str, *, at_once: bool = False
    ) -> AsyncGenerator[Step, None]:
        """Yield the steps of one request, the last one `finished`. vLLM merges output that is not read yet.

        `at_once`: a structured output binds the first token on, also of a model that reasons before it answers.

        Closing or cancelling the generator aborts the request.

        Raises:
            JobError: the engine refused the request, failed at it, or is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        meter = metering.current_meter.get() or metering.JobMeter()
        prompt = metered_engine.salted({"type": "token", "prompt_token_ids": prompt_ids}, meter)
        named = {"reasoning_ended": True} if at_once else {}
        stream = self._llm.generate(prompt, params, request_id, **metered_engine.traced(named, meter))
        if params.structured_outputs is not None:
            stream = begun_within(self._settings.engine_stall_seconds, stream)
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    self._steps.count()
                    completion_tokens = meter.count(request_id, output)
                    if any(choice.finish_reason == "error" for choice in output.outputs):
                        raise _failed_choice(params)
                    if not meter.show_cached_tokens:
                        output.num_cached_tokens = None
                    yield engine_output.step(output, completion_tokens)
        except EngineDeadError:
            raise JobError(Code.ENGINE_DEAD, "The engine died while it worked on this job.") from None
        except EngineGenerateError as error:
            self._emit("engine_error", level="error", request_id=request_id, cause=repr(error.__cause__ or error))
            raise JobError(Code.GENERATION_FAILED, "The engine failed to process this job.") from None
        except sampling.vllm_exception("GracefulHTTPError") as error:
            raise JobError(Code.OVERLOADED, f"The engine accepts no more requests: {error}") from None
        except sampling.refusals() as error:
            raise self._sampling.error(error) from None


def _failed_choice(params: Any) -> JobError:
    """The error for a request that the engine aborted; with a structured output in it, that is the cause."""
    if params.structured_outputs is None:
        return JobError(Code.GENERATION_FAILED, "The engine failed to process this job.")
    field = "sampling_params.structured_outputs"
    return JobError(Code.INVALID_INPUT, f"{field}: {engine_output.ConstraintError()}", field=field)
