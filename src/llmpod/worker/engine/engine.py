"""The vLLM engine: start, generation, shutdown.

Only this folder imports vllm, and it does so inside functions: the import takes seconds, and importing a module here
must cost nothing. Which of its names are used, and how, is held by tests/worker/engine/test_vllm_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from llmpod.worker import environ, machine
from llmpod.worker.engine import first_error, renderer, request_check, sampling
from llmpod.worker.engine.app import metered_engine
from llmpod.worker.engine.app.application import Application
from llmpod.worker.engine.constraints import ConstraintCompiler, begun_within
from llmpod.worker.engine.prompts import Frame, Prompts
from llmpod.worker.engine.sampling import Sampling
from llmpod.worker.engine.start import (
    compile_cache,
    cpu_fork_server,
    diagnosis,
    engine_arguments,
    fit,
    heap,
    hub,
    preflight,
    process,
    report,
    snapshots,
    warm_up,
)
from llmpod.worker.engine.start.compile_cache import CompileCache
from llmpod.worker.engine.start.progress import Progress
from llmpod.worker.engine.start.report import Started
from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs import engine_output, limits, metering
from llmpod.worker.jobs.bounds import LARGE_CHARS
from llmpod.worker.jobs.engine_output import Step
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.settings import Settings

ENGINE_MODULES = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker")
"""What vLLM's own processes import first."""
COUNTED_CHARS = 1_000_000
"""A prompt that is too long is tokenised up to this length (about a second), to report its number of tokens."""
CHOICE_TOKENS = 16
"""max_tokens of an answer that is one of a few words."""

EVERY_SAMPLER = {
    "temperature": 0.9,
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.1,
    "seed": 1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.2,
    "logit_bias": {0: 0.5},
    "logprobs": 1,
}
"""Sampling parameters whose first use initialises something in the engine."""


class Engine:
    """One vLLM engine, bound to the event loop that called `start`."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], emit: Emit) -> None:
        """`environment`: variables that are not settings, in which engine arguments are looked up."""
        self._settings = settings
        self._environment = environment
        self._emit = emit
        self._llm: Any = None
        self._prepared = False
        self._prompts: Prompts | None = None
        self._sampling: Sampling  # set by `start`
        self.profile_sampling: Iterable[tuple[str, Mapping[str, Any]]] = ()  # by place in the file; `start` checks them
        self.profile_forms: Iterable[tuple[str, Mapping[str, Any]]] = ()  # by task; `start` compiles them
        self.sampling_names: frozenset[str] = frozenset()
        self.sampling_defaults: Mapping[str, Any] = {}  # the value of each that changes nothing
        self.model_name = settings.served_name
        self.frame = Frame()  # the chat template's own text around a native job's messages
        self.max_model_len = 0
        self.max_num_seqs = 0
        self._longest_prompt = 0  # characters; no token has more than the longest
        self.generates = True  # false: a pooling runner, which embeds, scores and classifies
        self._constraints = ConstraintCompiler(settings.max_constraint_seconds)
        self.application: Application  # set by `start`
        self._compile_cache: CompileCache | None = None
        self._saving: asyncio.Task[None] | None = None  # of the compile cache, while the first jobs run
        self.last_step = time.monotonic()  # when the engine last finished one
        self.started: Started | None = None  # set by `start` when jobs can be answered

    # -- start and end -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Start what needs no event loop: vLLM's processes import it in the background. `start` calls this too.

        Raises:
            StartError: something is wrong that shows without vLLM.
        """
        if self._prepared:
            return
        diagnosis.examine(self._settings)
        self._prepared = True
        process.error_log().unlink(missing_ok=True)
        process.milestones().unlink(missing_ok=True)
        process.prepare(self._settings)
        folder = compile_cache.folder_for(self._settings, on_cpu=cpu_fork_server.on_cpu())
        if folder is not None:
            self._compile_cache = CompileCache(folder, self._emit)
            environ.put(self._compile_cache.variables)
        cpu_fork_server.start(ENGINE_MODULES)

    async def start(self) -> None:
        """Import vLLM, load the model, warm up. Blocks the event loop while the model loads.

        Raises:
            StartError: with the cause and the cure.
        """
        self.prepare()
        progress = Progress(self._emit, self._settings.loading_report_seconds, process.milestones())
        progress.subject = {"model": self._subject, "demo": self._settings.is_demo or None}
        try:
            progress.start()
            with heap.frozen_afterwards(), first_error.only():
                await self._start(progress)
        except BaseException as error:
            self.shutdown()
            if isinstance(error, Exception):
                raise diagnosis.diagnose(
                    error, self._settings, diagnosis.read_error_log(process.error_log())
                ) from error
            raise
        finally:
            progress.stop()

    async def _start(self, progress: Progress) -> None:
        with progress.phase("preflight"):
            found = await preflight.run(self._settings, self._environment, self._emit)
            progress.download = found.download
            local = snapshots.local(self._settings, found.snapshots)
            if self._compile_cache is not None:
                factors = compile_cache.factors_of(self._settings, found.gpus)
                await asyncio.to_thread(self._compile_cache.load, factors)
        with progress.phase("import"):
            from vllm.engine.async_llm_engine import AsyncLLMEngine
        with progress.phase("fit"):
            expected = await fit.report(local, found, self._emit)
        with progress.phase("load"):
            arguments = await self._load(AsyncLLMEngine, local)
        with progress.phase("warm_up"):
            await self._load_model_info(arguments.application.chat_template)
            tasks = await self._llm.get_supported_tasks()
            warmed = [await warm_up.timed("generate", self._warm_up())] if "generate" in tasks else []
        # From now on vLLM's check of structured outputs runs in another process: here it would block the event loop.
        self._llm.input_processor.structured_outputs_config = None
        with progress.phase("routes"):
            await self._serve_routes(arguments.application)
        with progress.phase("warm_up"):
            can = warm_up.capabilities(self.application, generates=self.generates)
            trials = warm_up.trials(can, self.application.paths, self.model_name, self._settings.lora_modules)
            warmed += await warm_up.run(self.application.asgi, trials)
            forms = self.profile_forms if self.generates else ()
            warmed += [await warm_up.timed(f"task:{name}", self.compile(name, form)) for name, form in forms]
        environ.put(hub.go_offline())
        progress.stop()
        gpus = (await preflight.gpus_now()).found if found.gpus.found else ()
        results = {result.capability: result.as_dict() for result in warmed}
        self.started = Started(
            *(time.monotonic(), can, results, progress.start_ms(), gpus),
            commit=machine.commit(self._environment),
            revision=found.revision or self._settings.model_revision,
        )
        self._emit("warm_up", capabilities=results)
        config = self._llm.vllm_config
        self._emit(
            "ready",
            model=self.model_name,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            kv_cache_tokens=self.kv_cache_tokens,
            **{f"{phase}_ms": self.started.start_ms[phase] for phase in ("import", "load", "warm_up", "routes")},
            start_ms=self.started.start_ms,
            memory=report.memory(self.started, progress, config.cache_config.kv_cache_memory_bytes, expected),
        )
        if self._compile_cache is not None:
            self._saving = asyncio.create_task(asyncio.to_thread(self._compile_cache.save))

    async def _load(self, engine_class: Any, local: Settings) -> Any:
        """Read the arguments and load the model; returns the arguments. `local`: settings with folders for hub ids."""
        # Errors that do not depend on the model are reported before it is loaded.
        usual = limits.clamp_max_tokens(None, self._settings).effective
        self._sampling = Sampling(self._settings.default_sampling_params, usual)
        self._sampling.check_profile(self.profile_sampling)
        self.sampling_names = self._sampling.names
        self.sampling_defaults = self._sampling.values_without_effect
        arguments = engine_arguments.read(local, self._environment, self._emit)
        arguments.application.model = self._settings.model  # as /v1/models shows it
        self._emit(
            "loading",
            model=self._subject,
            demo=True if self._settings.is_demo else None,
            note="Demonstration model: it knows a few hundred career questions. Set MODEL_NAME to serve a real one."
            if self._settings.is_demo
            else None,
            phase="load",
        )
        renderer.guard()
        self._llm = engine_class.from_engine_args(arguments.engine, stat_loggers=[self._step_observer()])
        metered_engine.count_cut_requests(self._llm)
        request_check.check(self._llm)
        await self._constraints.start(self._llm.vllm_config)
        return arguments

    @property
    def _subject(self) -> str:
        """What is loaded, as the `loading` events say it."""
        return self.model_name if self._settings.is_demo else self._settings.model

    async def _load_model_info(self, chat_template: str | None) -> None:
        """Read what jobs need to know of the loaded model; `chat_template`: the operator's."""
        config = self._llm.model_config
        self.generates = config.runner_type == "generate"
        self.max_model_len = config.max_model_len
        self.max_num_seqs = self._llm.vllm_config.scheduler_config.max_num_seqs
        tokenizer = self._llm.get_tokenizer()
        if inspect.isawaitable(tokenizer):
            tokenizer = await tokenizer
        self._longest_prompt = max(COUNTED_CHARS, self.max_model_len * tokenizer.max_chars_per_token)
        self._prompts = Prompts(
            tokenizer,
            chat_template=chat_template,
            allow_control_tokens=self._settings.allow_control_tokens,
        )
        self.frame = self._prompts.frame()
        self._sampling.learn(config.get_diff_sampling_param())

    async def _warm_up(self) -> None:
        """Run real generations, so that the first job does not pay for initialisation.

        The last one also fixes the engine's structured output backend, before a client does.
        """
        assert self._prompts is not None
        ids = self._prompts.render(NativeRequest("Hello", None, {}, None, False, None, True))
        for given in ({}, EVERY_SAMPLER, {"structured_outputs": {"json_object": True}}):
            try:
                params = self.sampling(given, 2, stream=False)
                async with contextlib.aclosing(self.generate(ids, params, "warm-up")) as steps:
                    async for _ in steps:
                        pass
            except JobError:
                if not given:  # excluded by this model or its configuration, for jobs too
                    raise

    async def compile(self, task: str, form: Mapping[str, Any]) -> None:
        """Compile the structured output of a task, and generate two tokens with it, so that no job pays for it.

        Raises:
            StartError: the engine cannot follow it within the limits.
        """
        try:
            params = self.sampling(form, 2, stream=False)
            await self.constrain(params)
            assert self._prompts is not None
            ids = self._prompts.render(NativeRequest("Hello", None, {}, None, False, None, True))
            async with contextlib.aclosing(self.generate(ids, params, "warm-up")) as steps:
                async for _ in steps:
                    pass
        except JobError as error:
            cause = error.message.removeprefix("sampling_params.structured_outputs: ")
            raise StartError(f"Task {task} of the profile: {cause}", "Correct its schema.", setting="PROFILE") from None

    async def _serve_routes(self, arguments: Any) -> None:
        """Build vLLM's application on top of the running engine."""
        assert self._prompts is not None
        self.application = Application(self._llm, self._prompts, self._settings, self._constrain)
        await self.application.start(arguments)
        if self.generates:
            await self.application.install_guard()

    async def settle(self) -> None:
        """Wait for what the start left to be done beside the first jobs: the compile cache is archived."""
        if self._saving is not None:
            await self._saving

    def shutdown(self) -> None:
        """End the engine's processes. May be called at any time, also before or during `start`."""
        self._constraints.shutdown()
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    @property
    def kv_cache_tokens(self) -> int | None:
        """Capacity of the KV cache in tokens, if this vLLM reports it."""
        cache = self._llm.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None

    @property
    def traces(self) -> bool:
        """Whether vLLM exports traces: OTLP_TRACES_ENDPOINT is set."""
        return self._llm.observability_config.otlp_traces_endpoint is not None

    @property
    def unfinished(self) -> int:
        """Unfinished requests in the engine; 0 at rest."""
        return int(self._llm.output_processor.get_num_unfinished_requests())

    @property
    def dead(self) -> bool:
        """Whether the engine's processes have failed. This is final."""
        return self._llm is not None and bool(self._llm.errored)

    async def respond(self) -> None:
        """Return when the engine's process has answered a probe, which it does between two steps.

        Raises:
            JobError: the engine is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.is_sleeping()
        except EngineDeadError:
            raise JobError(Code.ENGINE_DEAD, "The engine died.") from None

    def _step_observer(self) -> Any:
        """A vLLM "stat logger" that records when the engine finished a step (vllm/v1/metrics/loggers.py)."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        engine = self

        class StepObserver(StatLoggerBase):  # type: ignore[misc] # vLLM is not typed for us
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(self, *args: Any, **kwargs: Any) -> None:
                engine.last_step = time.monotonic()

            def log_engine_initialized(self) -> None:
                pass

        return StepObserver

    # -- one request ---------------------------------------------------------------------------------------------------

    async def render(self, request: NativeRequest) -> list[int]:
        """Render a request to token ids. Long prompts, and many messages, are tokenised in a thread.

        Raises:
            JobError: the model's chat template or the job's guardrails refuse it, it is too long to count, or the
                model does not generate.
        """
        if not self.generates:
            raise JobError(
                Code.UNSUPPORTED, "This worker embeds and scores (RUNNER=pooling): call its routes, /v1/embeddings …"
            )
        if request.chars > self._longest_prompt:
            raise JobError(
                Code.CONTEXT_LENGTH_EXCEEDED,
                f"The prompt has {request.chars} characters, which are more than {self.max_model_len} tokens.",
                field=request.prompt_field,
                chars=request.chars,
                max_model_len=self.max_model_len,
            )
        large = request.chars > LARGE_CHARS or len(request.messages or ()) > 200
        ids, pending = await asyncio.to_thread(self._render, request) if large else self._render(request)
        if pending is not None:
            await pending()
        return ids

    def _render(self, request: NativeRequest) -> tuple[list[int], metering.PendingCheck | None]:
        """Render a request and apply the guardrails of the job at work; returns what is left to check."""
        assert self._prompts is not None
        ids, text = self._prompts.rendered(request)
        meter = metering.current_meter.get()
        return ids, meter.judge(text) if meter is not None and meter.judge is not None else None

    async def choose(self, turns: Sequence[tuple[str, str]], choices: Sequence[str], request_id: str) -> str:
        """Ask the model for one of `choices`, at temperature 0. `turns`: (role, content), whose texts are guarded.

        None of the job's limits and counts apply. It takes no slot.

        Raises:
            JobError: the question does not fit the model's context, or the engine failed at it.
        """
        assert self._prompts is not None
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
            async with contextlib.aclosing(self.generate(ids, params, request_id)) as steps:
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
            await self._constrain(params.structured_outputs, "sampling_params.structured_outputs")

    async def _constrain(self, outputs: Any, field: str) -> None:
        """Check a request's StructuredOutputsParams and set their fields as vLLM's own check would.

        Raises:
            JobError: the engine could not follow them within the limits; `field` is theirs.
        """
        given = {name: value for name, value in vars(outputs).items() if value is not None and not name.startswith("_")}
        verdict = await self._constraints.check(given, field=field)
        for name, value in verdict.fields.items():
            setattr(outputs, name, value)
        outputs._backend, outputs._backend_was_auto = verdict.backend, verdict.auto

    async def generate(self, prompt_ids: list[int], params: Any, request_id: str) -> AsyncGenerator[Step, None]:
        """Yield the steps of one request, the last one `finished`. vLLM merges output that is not read yet.

        Closing or cancelling the generator aborts the request.

        Raises:
            JobError: the engine refused the request, failed at it, or is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        meter = metering.current_meter.get() or metering.JobMeter()
        prompt = metered_engine.salted({"type": "token", "prompt_token_ids": prompt_ids}, meter)
        stream = self._llm.generate(prompt, params, request_id, **metered_engine.traced({}, meter))
        if params.structured_outputs is not None:
            stream = begun_within(self._settings.engine_stall_seconds, stream)
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    self.last_step = time.monotonic()
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


# -- vLLM's values, as ours --------------------------------------------------------------------------------------------


def _failed_choice(params: Any) -> JobError:
    """The error for a request that the engine aborted; with a structured output in it, that is the cause."""
    if params.structured_outputs is None:
        return JobError(Code.GENERATION_FAILED, "The engine failed to process this job.")
    field = "sampling_params.structured_outputs"
    return JobError(Code.INVALID_INPUT, f"{field}: {engine_output.ConstraintError()}", field=field)
