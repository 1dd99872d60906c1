"""Start of the engine: pre-flight, import, load, warm-up, and what the operator reads of it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Iterable, Mapping
from typing import Any

from llmpod.worker import environ, machine
from llmpod.worker.engine import first_error, renderer, request_check
from llmpod.worker.engine.app import metered_engine
from llmpod.worker.engine.app.application import Application
from llmpod.worker.engine.constraints import ConstraintCompiler
from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.generation import Generation, Loaded, Steps
from llmpod.worker.engine.prompts import Prompts
from llmpod.worker.engine.sampling import Sampling
from llmpod.worker.engine.start import (
    compile_cache,
    cpu_fork_server,
    diagnosis,
    engine_arguments,
    fit,
    heap,
    hub,
    load_format,
    preflight,
    process,
    report,
    snapshots,
    warm_up,
)
from llmpod.worker.engine.start.compile_cache import CompileCache
from llmpod.worker.engine.start.progress import Progress
from llmpod.worker.engine.start.report import Started
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs import limits
from llmpod.worker.settings import Settings

ENGINE_MODULES = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker")
"""What vLLM's own processes import first."""

Named = Iterable[tuple[str, Mapping[str, Any]]]


class EngineStart:
    """One start of an engine."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], emit: Emit) -> None:
        """Start what needs no event loop: vLLM's processes import it in the background.

        `environment`: variables that are not settings, in which engine arguments are looked up.

        Raises:
            StartError: something is wrong that shows without vLLM.
        """
        self._settings = settings
        self._environment = environment
        self._emit = emit
        self._saving: asyncio.Task[None] | None = None  # of the compile cache, while the first jobs run
        diagnosis.examine(settings)
        load_format.check(environment, settings.model, on_cpu=cpu_fork_server.on_cpu())
        process.error_log().unlink(missing_ok=True)
        process.milestones().unlink(missing_ok=True)
        process.prepare(settings)
        folder = compile_cache.folder_for(settings, on_cpu=cpu_fork_server.on_cpu())
        self._compile_cache = CompileCache(folder, emit) if folder is not None else None
        if self._compile_cache is not None:
            environ.put(self._compile_cache.variables)
        cpu_fork_server.start(ENGINE_MODULES)

    async def run(self, sampling: Named = (), forms: Named = ()) -> Engine:
        """Import vLLM, load the model, warm up. Blocks the event loop while the model loads.

        `sampling`: a profile's sampling parameters, by place in the file, which are checked. `forms`: its structured
        outputs, by task, which are compiled.

        Raises:
            StartError: with the cause and the cure.
        """
        progress = Progress(self._emit, self._settings.loading_report_seconds, process.milestones())
        progress.subject = {"model": self._subject, "demo": self._settings.is_demo or None}
        try:
            progress.start()
            with heap.frozen_afterwards(), first_error.only(), contextlib.ExitStack() as undo:
                engine = await self._run(progress, undo, sampling, forms)
                undo.pop_all()
                return engine
        except Exception as error:
            raise diagnosis.diagnose(error, self._settings, diagnosis.read_error_log(process.error_log())) from error
        finally:
            progress.stop()

    async def settle(self) -> None:
        """Wait for what `run` left to be done beside the first jobs: the compile cache is archived."""
        if self._saving is not None:
            await self._saving

    @property
    def _subject(self) -> str:
        """What is loaded, as the `loading` events say it."""
        return self._settings.served_name if self._settings.is_demo else self._settings.model

    async def _run(self, progress: Progress, undo: contextlib.ExitStack, sampling: Named, forms: Named) -> Engine:
        """`undo`: what a failed start must end."""
        with progress.phase("preflight"):
            found = await preflight.run(self._settings, self._environment, self._emit)
            progress.download = found.download
            local = snapshots.local(self._settings, found.snapshots)  # with folders for the hub's ids
            filling = None
            if self._compile_cache is not None:  # beside the import: it takes as long as the network volume does
                factors = compile_cache.factors_of(local, found.gpus)
                filling = asyncio.get_running_loop().run_in_executor(None, self._compile_cache.load, factors)
        with progress.phase("import"):
            from vllm.engine.async_llm_engine import AsyncLLMEngine
            from vllm.envs import disable_envs_cache, enable_envs_cache

            disable_envs_cache()  # of an engine that this process had before
            if filling is not None:
                await filling
        with progress.phase("fit"):
            expected = await fit.report(local, found, self._emit)
        with progress.phase("load"):
            # Errors that do not depend on the model are reported before it is loaded.
            usual = limits.clamp_max_tokens(None, self._settings).effective
            parameters = Sampling(self._settings.default_sampling_params, usual)
            parameters.check_profile(sampling)
            arguments = engine_arguments.read(local, self._environment, self._emit)
            arguments.application.model = self._settings.model  # as /v1/models shows it
            self._report_loading()
            renderer.guard()
            steps = Steps()
            llm = AsyncLLMEngine.from_engine_args(arguments.engine, stat_loggers=[steps.observer()])
            undo.callback(llm.shutdown)
            steps.alone(llm)
            metered_engine.count_cut_requests(llm)
            request_check.check(llm)
            constraints = ConstraintCompiler(self._settings.max_constraint_seconds)
            undo.callback(constraints.shutdown)
            await constraints.start(llm.vllm_config)
        with progress.phase("warm_up"):
            tokenizer = llm.get_tokenizer()
            if inspect.isawaitable(tokenizer):
                tokenizer = await tokenizer
            template, allowed = arguments.application.chat_template, self._settings.allow_control_tokens
            prompts = Prompts(tokenizer, chat_template=template, allow_control_tokens=allowed)
            parameters.learn(llm.model_config.get_diff_sampling_param())
            longest = tokenizer.max_chars_per_token
            loaded = Loaded(self._settings, self._emit, llm, prompts, longest, parameters, constraints, steps)
            generation = Generation(loaded)
            tasks = await llm.get_supported_tasks()
            warmed = [await warm_up.timed("generate", warm_up.generate(generation))] if "generate" in tasks else []
        # From now on vLLM's check of structured outputs runs in another process: here it would block the event loop.
        llm.input_processor.structured_outputs_config = None
        with progress.phase("routes"):
            application = await Application.build(
                llm, prompts, self._settings, constraints.apply, arguments.application
            )
            if generation.generates:
                await application.install_guard()
        with progress.phase("warm_up"):
            can = warm_up.capabilities(application, generates=generation.generates)
            trials = warm_up.trials(can, application.paths, generation.model_name, self._settings.lora_modules)
            warmed += await warm_up.run(application.asgi, trials)
            for name, form in forms if generation.generates else ():
                warmed.append(await warm_up.timed(f"task:{name}", warm_up.compile_form(generation, name, form)))
        environ.put(hub.go_offline())
        progress.stop()
        gpus = (await preflight.gpus_now()).found if found.gpus.found else ()
        results = {result.capability: result.as_dict() for result in warmed}
        started = Started(
            *(time.monotonic(), can, results, progress.start_ms(), gpus),
            commit=machine.commit(self._environment),
            revision=found.revision or self._settings.model_revision,
        )
        engine = Engine(loaded, application, started)
        enable_envs_cache()  # vLLM reads its variables at every token
        self._emit("warm_up", capabilities=results)
        self._report_ready(engine, llm.vllm_config, progress, expected)
        if self._compile_cache is not None:
            self._saving = asyncio.create_task(asyncio.to_thread(self._compile_cache.save))
        return engine

    def _report_loading(self) -> None:
        demo = self._settings.is_demo
        note = "Demonstration model: it knows a few hundred career questions. Set MODEL_NAME to serve a real one."
        self._emit("loading", model=self._subject, demo=demo or None, note=note if demo else None, phase="load")

    def _report_ready(self, engine: Engine, config: Any, progress: Progress, expected: dict[str, Any] | None) -> None:
        """`config`: vLLM's VllmConfig. `expected`: memory, as fit.py estimated it."""
        start_ms = engine.started.start_ms
        self._emit(
            "ready",
            model=engine.model_name,
            max_model_len=engine.max_model_len,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            kv_cache_tokens=engine.kv_cache_tokens,
            **{f"{phase}_ms": start_ms[phase] for phase in ("import", "load", "warm_up", "routes")},
            start_ms=start_ms,
            memory=report.memory(engine.started, progress, config.cache_config.kv_cache_memory_bytes, expected),
        )
