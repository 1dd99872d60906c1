"""The vLLM engine: arguments, start, generation, end. The only module that imports vllm.

vLLM is imported inside functions, because its import takes seconds and importing a module here must cost nothing.
Which of its names are used, and how, is held by tests/worker/test_vllm_contract.py.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import logging.config
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import Any

from llmpod.worker import doctor, engine_options, generation
from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.events import Emit, logging_config
from llmpod.worker.generation import Step
from llmpod.worker.inputs import NativeRequest
from llmpod.worker.prompts import Prompts
from llmpod.worker.settings import Correction, Settings, provide

# Sampling parameters that are vLLM's business, not a client's, or whose result a native reply has no place for.
NOT_FROM_CLIENTS = frozenset(
    {
        "detokenize",
        "extra_args",
        "flat_logprobs",
        "logprob_token_ids",
        "output_kind",
        "output_text_buffer_length",
        "prompt_logprob_start",
        "prompt_logprob_token_ids",
        "prompt_logprobs",
        "routed_experts_prompt_start",
        "skip_clone",
        "stream_interval",
        "trace_decode_token_ids",
        "watermarking",
    }
)


class Engine:
    """One vLLM engine, alive in the event loop that called `start`."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], emit: Emit) -> None:
        """`environment`: the variables that are not ours, among which engine arguments are found."""
        self._settings = settings
        self._environment = environment
        self._emit = emit
        self._llm: Any = None
        self._prompts: Prompts | None = None
        self._chat_template: str | None = None
        self._default_sampling: dict[str, Any] = {}
        self.sampling_names: frozenset[str] = frozenset()
        self.model_name = settings.served_name
        self.max_model_len = 0
        self.max_num_seqs = 0
        self.last_step = time.monotonic()  # when the engine last finished one

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Import vLLM, load the model, warm up. Blocks the loop while it loads: nothing else is to be served yet.

        Raises:
            StartError: with the cause and the cure.
        """
        last_words = _scratch() / "last-words.log"
        last_words.unlink(missing_ok=True)
        try:
            await self._start(last_words)
        except BaseException as error:
            self.shutdown()
            if isinstance(error, Exception):
                raise doctor.diagnose(error, self._settings, doctor.read_last_words(last_words)) from error
            raise

    async def _start(self, last_words: Path) -> None:
        started = time.monotonic()
        _prepare_process(self._settings, last_words)
        from vllm.engine.async_llm_engine import AsyncLLMEngine

        imported = time.monotonic()
        self._read_settings()
        arguments = engine_arguments(self._settings, self._environment, self._emit)
        self._emit(
            "loading",
            model=self._settings.model if not self._settings.is_demo else self.model_name,
            demo=True if self._settings.is_demo else None,
            note="Demonstration model: it knows a few hundred career questions. Set MODEL_NAME to serve a real one."
            if self._settings.is_demo
            else None,
        )
        self._llm = AsyncLLMEngine.from_engine_args(arguments, stat_loggers=[self._step_observer()])
        loaded = time.monotonic()
        await self._learn()
        await self._warm_up()
        self._emit(
            "ready",
            model=self.model_name,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self._llm.vllm_config.scheduler_config.max_num_batched_tokens,
            kv_cache_tokens=self.kv_cache_tokens,
            import_ms=_ms(imported - started),
            load_ms=_ms(loaded - imported),
            warm_up_ms=_ms(time.monotonic() - loaded),
        )

    def _read_settings(self) -> None:
        """What can be wrong without a model: said before one is loaded."""
        from vllm import SamplingParams

        fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
        self.sampling_names = frozenset(fields - NOT_FROM_CLIENTS)
        for name in self._settings.default_sampling_params:
            if name not in self.sampling_names:
                raise StartError(
                    f"DEFAULT_SAMPLING_PARAMS names {name}, which is no sampling parameter of jobs.",
                    "Remove or correct it.",
                    setting="DEFAULT_SAMPLING_PARAMS",
                )
        self._chat_template = _text_or_file(self._settings.custom_chat_template)

    async def _learn(self) -> None:
        """What jobs need to know of the loaded model."""
        config = self._llm.model_config
        self.max_model_len = config.max_model_len
        self.max_num_seqs = self._llm.vllm_config.scheduler_config.max_num_seqs
        tokenizer = self._llm.get_tokenizer()
        if inspect.isawaitable(tokenizer):
            tokenizer = await tokenizer
        self._prompts = Prompts(
            tokenizer,
            chat_template=self._chat_template,
            allow_control_tokens=self._settings.allow_control_tokens,
        )
        # What the model's own generation_config.json recommends, then what the operator wants.
        recommended = config.get_diff_sampling_param()
        self._default_sampling = {name: recommended[name] for name in recommended if name in self.sampling_names}
        self._default_sampling |= self._settings.default_sampling_params
        self._default_sampling.pop("max_tokens", None)

    async def _warm_up(self) -> None:
        """One real generation, so that the first job pays for none of what the first forward pass sets up."""
        assert self._prompts is not None
        ids = self._prompts.render(NativeRequest("Hello", None, {}, None, False, None, True))
        async with contextlib.aclosing(self.generate(ids, self.sampling({}, 2, stream=False), "warm-up")) as steps:
            async for _ in steps:
                pass

    def shutdown(self) -> None:
        """End the engine's processes. Safe to call at any time, also before or during `start`."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    @property
    def kv_cache_tokens(self) -> int | None:
        """Tokens the KV cache holds, if this vLLM tells."""
        cache = self._llm.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None

    @property
    def unfinished(self) -> int:
        """Requests the engine has not finished; 0 at rest."""
        return int(self._llm.output_processor.get_num_unfinished_requests())

    @property
    def dead(self) -> bool:
        """Whether the engine's processes have failed. A dead engine stays dead."""
        return self._llm is not None and bool(self._llm.errored)

    def _step_observer(self) -> Any:
        """A vLLM "stat logger" that notes when the engine finished a step (vllm/v1/metrics/loggers.py)."""
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
        """The request's token ids. A long prompt is tokenised beside the event loop, not in it.

        Raises:
            JobError: the model's chat template refuses the messages.
        """
        assert self._prompts is not None
        if request.chars > 20_000:
            return await asyncio.to_thread(self._prompts.render, request)
        return self._prompts.render(request)

    def sampling(self, given: Mapping[str, Any], max_tokens: int, *, stream: bool) -> Any:
        """vLLM's SamplingParams: the client's over the operator's over the model's own.

        Raises:
            JobError: a value of the wrong type or range, by name.
        """
        import msgspec
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        values = copy.deepcopy(self._default_sampling)
        values.update((name, value) for name, value in given.items() if value is not None)
        try:
            params = msgspec.convert(values | {"max_tokens": max_tokens}, SamplingParams, str_keys=True)
        except _refusals() as error:
            raise _sampling_error(error, self.sampling_names) from None
        params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        return params

    async def generate(self, prompt_ids: list[int], params: Any, request_id: str) -> AsyncGenerator[Step, None]:
        """Steps of one request, the last one `finished`. While the reader is busy, vLLM merges what becomes ready.

        Closing or cancelling it ends the request in the engine.

        Raises:
            JobError: the engine refused the request, failed at it, or is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        completion_tokens = 0
        stream = self._llm.generate({"type": "token", "prompt_token_ids": prompt_ids}, params, request_id)
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    self.last_step = time.monotonic()
                    completion_tokens += sum(len(choice.token_ids) for choice in output.outputs)
                    yield generation.step(output, completion_tokens)
        except EngineDeadError:
            raise JobError(Code.ENGINE_DEAD, "The engine died while it worked on this job.") from None
        except EngineGenerateError as error:
            self._emit("engine_error", level="error", request_id=request_id, cause=repr(error.__cause__ or error))
            raise JobError(Code.GENERATION_FAILED, "The engine failed at this job.") from None
        except _vllm_exception("GracefulHTTPError") as error:
            raise JobError(Code.OVERLOADED, f"The engine takes no more: {error}") from None
        except _refusals() as error:
            raise _sampling_error(error, self.sampling_names) from None


# -- vLLM's values, as ours --------------------------------------------------------------------------------------------


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _vllm_exception(name: str) -> type[Exception]:
    """An exception class of vLLM's, or one that nobody raises where this release does not have it."""
    import vllm.exceptions

    found: type[Exception] = getattr(vllm.exceptions, name, _NotInThisRelease)
    return found


class _NotInThisRelease(Exception):  # noqa: N818 - never raised
    pass


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM, msgspec and pydantic raise when a request is wrong (the latter two's are ValueErrors)."""
    return _vllm_exception("VLLMClientError"), ValueError, TypeError


def _sampling_error(error: Exception, names: Collection[str]) -> JobError:
    """vLLM says "top_p must be in (0, 1], got 2.0. (parameter=top_p, value=2.0)", msgspec "… - at `$.top_p`"."""
    message = str(error)
    name = getattr(error, "parameter", None)
    if " - at `" in message:
        message, _, where = message.partition(" - at `")
        name = where.split("$.", 1)[-1].rstrip("`").split(".")[0].split("[")[0]
    message = message.split(" (parameter=")[0].rstrip(".")
    if name is None:  # not every check names its parameter, but each says it
        name = next((word for word in re.findall(r"\w+", message) if word in names), None)
    field = f"sampling_params.{name}" if name else "sampling_params"
    return JobError(Code.INVALID_INPUT, f"{field}: {message}.", field=field)


# -- start -------------------------------------------------------------------------------------------------------------


@functools.cache
def _scratch() -> Path:
    """A folder for what the engine's processes read and write, gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="llmpod-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _prepare_process(settings: Settings, last_words: Path) -> None:
    """What vLLM and its child processes read from the environment when they are imported."""
    log = logging_config(settings.log_level.upper(), last_words)
    logging.config.dictConfig(log)  # for what is logged before vLLM reads the file, and over what the SDK set up
    config = last_words.with_name("logging.json")
    config.write_text(json.dumps(log))
    provide(
        {
            "VLLM_LOGGING_CONFIG_PATH": str(config),
            "VLLM_LOGGING_LEVEL": settings.log_level.upper(),
            "VLLM_NO_USAGE_STATS": "1",  # a worker tells nobody what it serves
            "TOKENIZERS_PARALLELISM": "false",  # one prompt at a time, and forked children do not warn about it
            # What is not a log record would break the form of the log: progress bars, Python's and C++'s warnings.
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONWARNINGS": "ignore",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
    )


def engine_arguments(settings: Settings, environment: Mapping[str, str], emit: Emit) -> Any:
    """vLLM's AsyncEngineArgs from the settings, and from any other variable that bears an engine argument's name.

    Raises:
        StartError: a variable nearly bears an argument's name, or vLLM's parser refuses its value.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    parser = AsyncEngineArgs.add_cli_args(engine_options.Parser(prog="worker", add_help=False))
    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    words = engine_options.command_line(parser, fields, settings, environment, emit, on_cpu=on_cpu)
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(words))

    if on_cpu and args.kv_cache_memory_bytes is None:
        provide({"VLLM_CPU_KVCACHE_SPACE": "1"})  # GiB; vLLM would take a share of all memory
    if settings.tensor_parallel_size is None and not on_cpu:
        args.tensor_parallel_size = _all_gpus(args, current_platform.device_count(), emit)
    if settings.max_num_batched_tokens is not None:
        clamped = engine_options.clamp_batched_tokens(
            settings.max_num_batched_tokens,
            max_model_len=settings.max_model_len or args.create_model_config().max_model_len,
            max_num_seqs=settings.max_num_seqs,
            chunked_prefill=settings.enable_chunked_prefill,
        )
        args.max_num_batched_tokens = clamped.value
        if clamped.reason is not None:
            given = str(settings.max_num_batched_tokens)
            correction = Correction("MAX_NUM_BATCHED_TOKENS", given, str(clamped.value), f"raised: {clamped.reason}")
            emit("setting_corrected", **dataclasses.asdict(correction))
    return args


def _all_gpus(args: Any, gpus: int, emit: Emit) -> int:
    if gpus <= 1:
        return 1
    config = args.create_model_config()
    size = engine_options.tensor_parallel_size(gpus, config.hf_text_config.num_attention_heads)
    emit("tensor_parallel", gpus=gpus, used=size)
    return size


def _text_or_file(template: str | None) -> str | None:
    """A chat template given as its text (it then has a brace in it) or as a file's path."""
    if template is None or "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except OSError as error:
        raise StartError(
            f"CUSTOM_CHAT_TEMPLATE={template!r} cannot be read: {error.strerror}.",
            "Give a template or a file's path.",
            setting="CUSTOM_CHAT_TEMPLATE",
        ) from None
