"""The vLLM engine: arguments, start, generation, end. The only module that imports vllm.

vLLM is imported inside functions, because its import takes seconds and importing a module here must cost nothing.
Which of its names are used, and how, is held by tests/worker/test_vllm_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import inspect
import re
import time
import types
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from llmpod.worker import doctor, engine_options, engine_process, fork_server, generation, route_table, served
from llmpod.worker.asgi import App, Exchange
from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.events import Emit
from llmpod.worker.generation import Step
from llmpod.worker.inputs import NativeRequest
from llmpod.worker.prompts import GUARD, Prompts
from llmpod.worker.route_table import Route
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


ENGINE_MODULES = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker")
"""What vLLM's own processes import first."""

STORED_RESPONSES = 1000
"""Responses that previous_response_id can go back to; older ones are forgotten."""

_GUARD_BYTES = GUARD.encode()


class Engine:
    """One vLLM engine, alive in the event loop that called `start`."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], emit: Emit) -> None:
        """`environment`: the variables that are not ours, among which engine arguments are found."""
        self._settings = settings
        self._environment = environment
        self._emit = emit
        self._llm: Any = None
        self._prepared = False
        self._prompts: Prompts | None = None
        self._chat_template: str | None = None
        self._default_sampling: dict[str, Any] = {}
        self.sampling_names: frozenset[str] = frozenset()
        self.model_name = settings.served_name
        self.max_model_len = 0
        self.max_num_seqs = 0
        self.generates = True  # false: a pooling runner, which embeds, scores and classifies
        self.takes_media = False
        self.calls_tools = False
        self.app: App  # vLLM's application, once `start` is through
        self._routes: list[Route] = []
        self._guards = False
        self.last_step = time.monotonic()  # when the engine last finished one

    # -- life ----------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Begin what needs no event loop: vLLM's processes import it while other things start. `start` does it, too."""
        if self._prepared:
            return
        self._prepared = True
        engine_process.last_words().unlink(missing_ok=True)
        engine_process.prepare(self._settings)
        fork_server.start(ENGINE_MODULES)

    async def start(self) -> None:
        """Import vLLM, load the model, warm up. Blocks the loop while it loads: nothing else is to be served yet.

        Raises:
            StartError: with the cause and the cure.
        """
        self.prepare()
        try:
            await self._start()
        except BaseException as error:
            self.shutdown()
            if isinstance(error, Exception):
                raise doctor.diagnose(
                    error, self._settings, doctor.read_last_words(engine_process.last_words())
                ) from error
            raise

    async def _start(self) -> None:
        started = time.monotonic()
        from vllm.engine.async_llm_engine import AsyncLLMEngine

        imported = time.monotonic()
        self._read_settings()
        arguments, frontend = all_arguments(self._settings, self._environment, self._emit)
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
        if self.generates:
            await self._warm_up()
        warm = time.monotonic()
        await self._serve_routes(frontend)
        self._emit(
            "ready",
            model=self.model_name,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self._llm.vllm_config.scheduler_config.max_num_batched_tokens,
            kv_cache_tokens=self.kv_cache_tokens,
            import_ms=_ms(imported - started),
            load_ms=_ms(loaded - imported),
            warm_up_ms=_ms(warm - loaded),
            routes_ms=_ms(time.monotonic() - warm),
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
        self.generates = config.runner_type == "generate"
        self.takes_media = bool(config.is_multimodal_model)
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

    async def _serve_routes(self, frontend: Any) -> None:
        """vLLM's application around the engine that runs already.

        Raises:
            StartError: an adapter cannot be loaded.
        """
        build_app, init_app_state = _application()
        tasks = await self._llm.get_supported_tasks()
        app = build_app(frontend, tasks, self._llm.model_config)
        try:
            await init_app_state(served.WatchedEngine(self._llm), app.state, frontend, tasks)
        except ValueError as error:
            models = getattr(app.state, "openai_serving_models", None)
            loaded = self._settings.lora_modules if models is None else models.lora_requests
            name = next((name for name in self._settings.lora_modules if name not in loaded), None)
            if name is None:
                raise
            raise StartError(
                f"LORA_MODULES: the adapter {name!r} cannot be loaded: {error}",
                "Correct or remove it.",
                setting="LORA_MODULES",
            ) from error
        app.state.server = types.SimpleNamespace(should_exit=False)  # what vLLM tells its own server to do
        responses = getattr(app.state, "openai_serving_responses", None)
        for store in ("response_store", "msg_store", "event_store"):
            if hasattr(responses, store):
                setattr(responses, store, served.Bounded(STORED_RESPONSES))
        # gpt-oss has a format of its own, which vLLM reads without a parser's name (openai/parser/harmony_utils.py).
        harmony = self._llm.model_config.hf_config.model_type == "gpt_oss"
        self.calls_tools = harmony or (frontend.enable_auto_tool_choice and bool(frontend.tool_call_parser))
        self._routes = route_table.read(app)
        self.app = app
        self._guards = self.generates and await self._install_guard()

    async def _install_guard(self) -> bool:
        """Make vLLM's renderer cut texts where `guard` marked them. Whether it does, by trying."""
        assert self._prompts is not None
        prompts = self._prompts
        renderer = self._llm.renderer
        tokenize = getattr(renderer, "_tokenize_prompt_async", None)
        if tokenize is None:
            return False

        def cut(prompt: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
            ids = prompts.encode_guarded(prompt["prompt"], add_special_tokens=options.get("add_special_tokens", True))
            limit = options.get("max_length") if options.get("truncation") else None
            if limit is not None:
                left = getattr(renderer.tokenizer, "truncation_side", "right") == "left"
                ids = ids[-limit:] if left else ids[:limit]
            return prompt | {"prompt": prompt["prompt"].replace(GUARD, ""), "prompt_token_ids": ids}

        async def guarded(prompt: dict[str, Any], params: Any) -> Any:
            if GUARD not in prompt["prompt"]:
                return await tokenize(prompt, params)
            return await asyncio.to_thread(cut, prompt, params.get_encode_kwargs())

        renderer._tokenize_prompt_async = guarded
        token = next(iter(self._prompts.control_texts), None)
        if token is None or not self._prompts.has_chat_template:
            return True
        with_token, without = await self._tokens_of(self._prompts.guard(f"a{token}b")), await self._tokens_of("ab")
        counts = [sum(token_id in self._prompts.control_ids for token_id in ids) for ids in (with_token, without)]
        return bool(without) and counts[0] == counts[1] and GUARD not in self.decode(with_token)

    async def _tokens_of(self, text: str) -> list[int]:
        """What vLLM's application makes of one user message."""
        body = orjson.dumps({"messages": [{"role": "user", "content": text}]})
        headers = {"content-type": "application/json"}
        async with Exchange(self.app, "POST", "/tokenize", headers=headers, body=body) as exchange:
            return list(orjson.loads(await exchange.whole()).get("tokens", ()))

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

    # -- vLLM's routes -------------------------------------------------------------------------------------------------

    def has_route(self, method: str, path: str) -> bool:
        """Whether vLLM's application has this route for the model it serves."""
        return self._route(method, path) is not None

    def fields_of(self, method: str, path: str) -> frozenset[str] | None:
        """The fields that the route's body may hold; None where vLLM does not say."""
        route = self._route(method, path)
        return route.fields if route else None

    @property
    def route_table(self) -> list[tuple[str, frozenset[str]]]:
        """Every path of vLLM's application, open or not, and its methods."""
        return [(route.path, route.methods) for route in self._routes]

    def _route(self, method: str, path: str) -> Route | None:
        found = (route for route in self._routes if method in route.methods and route.pattern.fullmatch(path))
        return next(found, None)

    @property
    def names(self) -> dict[str, str]:
        """Everything the model and its adapters may be called -> the name by which vLLM knows it."""
        model = self._settings.model
        called = (self.model_name, model, model.rstrip("/").rsplit("/", 1)[-1], str(Path(model).resolve()))
        adapters = self.app.state.openai_serving_models.lora_requests  # type: ignore[attr-defined]
        return dict.fromkeys(called, self.model_name) | {name: name for name in adapters}

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt given as token ids."""
        assert self._prompts is not None
        return self._prompts.decode(token_ids) if token_ids else ""

    def refuse_control_ids(self, token_ids: Sequence[int], *, field: str) -> None:
        """A control token by its number is one as well.

        Raises:
            JobError: `field` holds one and ALLOW_CONTROL_TOKENS is off.
        """
        assert self._prompts is not None
        if self._settings.allow_control_tokens or self._prompts.control_ids.isdisjoint(token_ids):
            return
        raise JobError(Code.INVALID_INPUT, f"{field} holds the ids of control tokens.", field=field)

    def guard(self, value: Any, *, field: str) -> Any:
        """A field of a body, so that no text in it can become a control token (see prompts.py).

        Raises:
            JobError: it holds a control token, and vLLM's renderer for this model gives no way to defuse it.
        """
        assert self._prompts is not None
        guarded = self._prompts.guard(value)
        if guarded != value and not self._guards:
            raise JobError(Code.INVALID_INPUT, f"{field} holds a control token of the model.", field=field)
        return guarded

    def unguard(self, answer: bytes) -> bytes:
        """An answer without the marks of `guard`, should one have come through (in a tool's name, say)."""
        return answer.replace(_GUARD_BYTES, b"") if _GUARD_BYTES in answer else answer

    # -- one request ---------------------------------------------------------------------------------------------------

    async def render(self, request: NativeRequest) -> list[int]:
        """The request's token ids. A long prompt is tokenised beside the event loop, not in it.

        Raises:
            JobError: the model's chat template refuses the messages, or the model does not generate.
        """
        assert self._prompts is not None
        if not self.generates:
            raise JobError(
                Code.UNSUPPORTED, "This worker embeds and scores (RUNNER=pooling): call its routes, /v1/embeddings …"
            )
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
                    if any(choice.finish_reason == "error" for choice in output.outputs):
                        raise _failed_choice(params)
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


def _failed_choice(params: Any) -> JobError:
    """The engine gave a request up. With a constraint in it, the constraint is why."""
    if params.structured_outputs is None:
        return JobError(Code.GENERATION_FAILED, "The engine failed at this job.")
    field = "sampling_params.structured_outputs"
    return JobError(Code.INVALID_INPUT, f"{field}: {generation.ConstraintError()}", field=field)


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


def _application() -> tuple[Any, Any]:
    """vLLM's `build_app` and `init_app_state`, which stand elsewhere in older releases, with the same signatures."""
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
    except ModuleNotFoundError:
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
    return build_app, init_app_state


def _command_line() -> tuple[Any, Any]:
    """vLLM's `make_arg_parser` and `BaseFrontendArgs`, likewise."""
    try:
        from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs, make_arg_parser
    except ModuleNotFoundError:
        from vllm.entrypoints.openai.cli_args import BaseFrontendArgs, make_arg_parser
    return make_arg_parser, BaseFrontendArgs


def engine_arguments(settings: Settings, environment: Mapping[str, str], emit: Emit) -> Any:
    """vLLM's AsyncEngineArgs from the settings, and from any other variable that bears an engine argument's name.

    Raises:
        StartError: a variable nearly bears an argument's name, or vLLM's parser refuses its value.
    """
    return all_arguments(settings, environment, emit)[0]


def all_arguments(settings: Settings, environment: Mapping[str, str], emit: Emit) -> tuple[Any, Any]:
    """`engine_arguments`, and the arguments of vLLM's application (its tool parser, its response role …).

    Raises:
        StartError: as `engine_arguments`.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    from vllm.platforms import current_platform

    make_arg_parser, BaseFrontendArgs = _command_line()  # noqa: N806 - a class of vLLM's
    on_cpu = current_platform.is_cpu()
    parser = make_arg_parser(engine_options.Parser(prog="worker", add_help=False))
    # Of its application's arguments, those that say how requests are answered; not those of a server: host, TLS, keys.
    fields = {field.name for kind in (AsyncEngineArgs, BaseFrontendArgs) for field in dataclasses.fields(kind)}
    words = engine_options.command_line(parser, fields, settings, environment, emit, on_cpu=on_cpu)
    frontend = parser.parse_args(words)
    frontend.chat_template = _text_or_file(settings.custom_chat_template)
    frontend.lora_modules = [LoRAModulePath(name, path) for name, path in settings.lora_modules.items()] or None
    frontend.disable_fastapi_docs = True
    frontend.served_model_name = frontend.served_model_name or [settings.model]
    _read_parsers(frontend, environment)
    args = AsyncEngineArgs.from_cli_args(frontend)

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
    return args, frontend


def _read_parsers(frontend: Any, environment: Mapping[str, str]) -> None:
    """What reads tool calls and reasoning out of answers: imported, as `vllm serve` imports it, and known to be there.

    Raises:
        StartError: vLLM, with the operator's plugins, has no such parser.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if frontend.tool_parser_plugin:
        ToolParserManager.import_tool_parser(frontend.tool_parser_plugin)
    if getattr(frontend, "reasoning_parser_plugin", None):
        ReasoningParserManager.import_reasoning_parser(frontend.reasoning_parser_plugin)
    if frontend.tool_call_parser and not environment.get("ENABLE_AUTO_TOOL_CHOICE", "").strip():
        frontend.enable_auto_tool_choice = True  # whoever names a parser wants calls to be read
    if frontend.enable_auto_tool_choice and not frontend.tool_call_parser:
        raise StartError(
            "ENABLE_AUTO_TOOL_CHOICE needs a parser for the model's calls.",
            "Set TOOL_CALL_PARSER.",
            setting="TOOL_CALL_PARSER",
        )
    for setting, name, manager in (
        ("TOOL_CALL_PARSER", frontend.tool_call_parser, ToolParserManager),
        ("REASONING_PARSER", getattr(frontend, "reasoning_parser", None), ReasoningParserManager),
    ):
        known = manager.list_registered()
        if name and name not in known:
            raise StartError(
                f"{setting}={name!r} is no parser of this vLLM.", f"Use one of {', '.join(known)}.", setting=setting
            )


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
