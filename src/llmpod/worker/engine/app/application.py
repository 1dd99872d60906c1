"""vLLM's HTTP application on top of the running engine, and information about its routes and models."""

from __future__ import annotations

import contextvars
import importlib.metadata
import types
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from llmpod.worker.engine.app import metered_engine, route_table
from llmpod.worker.engine.app.asgi import App, Exchange
from llmpod.worker.engine.app.route_table import Route
from llmpod.worker.engine.frame import FRAMED_MESSAGES, MEASURED_TOOL, Frame, conversation
from llmpod.worker.engine.prompts import Prompts
from llmpod.worker.engine.renderer import Guarded
from llmpod.worker.engine.token_outputs import Detokenizer
from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.jobs import metering, route_catalog
from llmpod.worker.jobs.inputs import GUARD
from llmpod.worker.settings import Settings

STORED_RESPONSES = 1000
"""Responses available to previous_response_id; older ones are dropped."""

_GUARD_BYTES = GUARD.encode()
_FREQUENT = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings")


class Application:
    """The application of one running `AsyncLLMEngine`."""

    def __init__(self, app: Any, arguments: Any, llm: Any, prompts: Prompts, settings: Settings) -> None:
        """`app`: vLLM's own, initialised with `arguments` (`build`)."""
        self._llm = llm
        self._prompts = prompts
        self._settings = settings
        self._state = app.state
        self._guards = False
        self._harmony = llm.model_config.hf_config.model_type == "gpt_oss"
        self.frame = Frame()  # the template's own text, measured by `install_guard`
        self.routes = route_table.read(app)  # every path, open or not
        self.paths = frozenset(route.path for route in self.routes)  # for this model, open or not
        served, model = settings.served_name, settings.model
        called = (served, model, model.rstrip("/").rsplit("/", 1)[-1], str(Path(model).resolve()))
        self._called = dict.fromkeys(called, served)  # the model's names
        self.takes_media = bool(llm.model_config.is_multimodal_model)
        # gpt-oss has its own format, which vLLM parses without a parser's name (openai/parser/harmony_utils.py).
        self.calls_tools = self._harmony or (arguments.enable_auto_tool_choice and bool(arguments.tool_call_parser))
        self.reads_reasoning = self._harmony or bool(arguments.structured_outputs_config.reasoning_parser)

        async def with_load(*call: Any) -> None:
            """/load reports all requests in the engine; vLLM counts those of its routes, and only if enabled."""
            app.state.server_load_metrics = llm.output_processor.get_num_unfinished_requests()
            await app(*call)

        self.asgi: App = with_load

    @classmethod
    async def build(
        cls, llm: Any, prompts: Prompts, settings: Settings, constrain: metered_engine.Constrain, arguments: Any
    ) -> Application:
        """Build the application. `arguments`: its own, from engine_arguments.py.

        Raises:
            StartError: an adapter cannot be loaded.
        """
        build_app, init_app_state = _application()
        tasks = await llm.get_supported_tasks()
        app = build_app(arguments, tasks, llm.model_config)
        # Starlette and the metrics' middleware both try one route after another, at every request.
        app.router.routes.sort(key=lambda route: getattr(route, "path", None) not in _FREQUENT)
        # No browser calls it: a job has no origin, and headers of its answer end here.
        app.user_middleware = [one for one in app.user_middleware if one.cls.__name__ != "CORSMiddleware"]
        try:
            await init_app_state(_metered_engine(llm, prompts, settings, constrain), app.state, arguments, tasks)
        except ValueError as error:
            models = getattr(app.state, "openai_serving_models", None)
            loaded = settings.lora_modules if models is None else models.lora_requests
            name = next((name for name in settings.lora_modules if name not in loaded), None)
            if name is None:
                raise
            raise StartError(
                f"LORA_MODULES: the adapter {name!r} cannot be loaded: {error}",
                "Correct or remove it.",
                setting="LORA_MODULES",
            ) from error
        app.state.server = types.SimpleNamespace(should_exit=False)  # a flag that vLLM sets on its own server
        for serving in app.state._state.values():
            metered_engine.keep_failures(serving)
        responses = getattr(app.state, "openai_serving_responses", None)
        for store in ("response_store", "msg_store", "event_store"):
            if hasattr(responses, store):
                setattr(responses, store, metered_engine.Bounded(STORED_RESPONSES))
        made = cls(app, arguments, llm, prompts, settings)
        route_catalog.check_opened(settings.allowed_routes, made.paths)
        return made

    async def install_guard(self) -> None:
        """Set the guard of vLLM's renderer. Whether it can cut texts at the marks is found by a test prompt."""
        renderer = self._llm.renderer
        if isinstance(renderer, Guarded):
            renderer.prompts = self._prompts
            renderer.cuts = self._guards = not self._harmony and await self._cuts()
        with_tool = await self._visible(1, tools=[MEASURED_TOOL], tool_choice="none")
        self.frame = Frame.measured(await self._visible(1), await self._visible(FRAMED_MESSAGES), with_tool)

    @property
    def modalities(self) -> frozenset[str]:
        """What the model takes beside text, and the operator has not ruled out: image, audio, video."""
        processor = getattr(self._llm.renderer, "mm_processor", None)
        limits = processor.info.allowed_mm_limits if self.takes_media and processor is not None else {}
        return frozenset(modality for modality, most in limits.items() if most)

    def has(self, path: str) -> bool:
        """Whether the application has a route for the path."""
        return path in self.paths or any(route.pattern.fullmatch(path) for route in self.routes)

    def route(self, method: str, path: str) -> Route | None:
        """The route for a call, if the served model has one."""
        found = (route for route in self.routes if method in route.methods and route.pattern.fullmatch(path))
        return next(found, None)

    @property
    def names(self) -> dict[str, str]:
        """Accepted names of the model and its adapters -> the name vLLM uses."""
        return self._called | {name: name for name in self._state.openai_serving_models.lora_requests}

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt given as token ids."""
        return self._prompts.decode(token_ids) if token_ids else ""

    def refuse_control_ids(self, token_ids: Sequence[int], *, field: str) -> None:
        """Reject ids of control tokens in a prompt given as token ids.

        Raises:
            JobError: `field` holds one and ALLOW_CONTROL_TOKENS is off.
        """
        if self._settings.allow_control_tokens or self._prompts.control_ids.isdisjoint(token_ids):
            return
        raise JobError(Code.INVALID_INPUT, f"{field} holds the ids of control tokens.", field=field)

    def guard(self, value: Any, *, field: str) -> Any:
        """Mark control tokens in a body field that becomes a prompt without a template.

        Raises:
            JobError: it holds a control token, and there is no way to defuse it where it goes.
        """
        if self._guards and field in ("prompt", "suffix"):
            return self._prompts.guard(value)
        if not self._guards or field in ("query", "items"):  # the scoring route tokenises these itself
            self._prompts.refuse_control_tokens(value, field=field)
        return value

    def unguard(self, answer: bytes) -> bytes:
        """Remove the marks of `guard` from an answer, which may repeat them (in a tool's name, say)."""
        return answer.replace(_GUARD_BYTES, b"") if _GUARD_BYTES in answer else answer

    def parses(self, body: Mapping[str, Any], fields: Collection[str] | None) -> bool:
        """Whether vLLM parses tool calls or reasoning; `fields`: what the route's body may hold."""
        return fields is not None and "tools" in fields and (self.reads_reasoning or bool(body.get("tools")))

    async def _cuts(self) -> bool:
        """Whether a control token in a user's message stays text in vLLM's application."""
        token = next(iter(self._prompts.control_texts), None)
        if token is None or not self._prompts.has_chat_template:
            return True
        with_token, without = await self._tokens_of(f"a{token}b"), await self._tokens_of("ab")
        counts = [sum(token_id in self._prompts.control_ids for token_id in ids) for ids in (with_token, without)]
        return bool(without) and counts[0] == counts[1] and GUARD not in self.decode(with_token)

    async def _tokens_of(self, text: str) -> list[int]:
        """The token ids that vLLM's application makes of one user message."""
        body = orjson.dumps({"messages": [{"role": "user", "content": text}]})
        headers = {"content-type": "application/json"}
        async with Exchange(self.asgi, "POST", "/tokenize", headers=headers, body=body) as exchange:
            return list(orjson.loads(await exchange.whole()).get("tokens", ()))

    async def _visible(self, length: int, **fields: Any) -> str | None:
        """The visible text of a conversation of so many messages. The guardrail refuses it, so nothing is generated."""
        seen = []

        def judge(text: str) -> None:
            seen.append(text)
            raise JobError(Code.UNSUPPORTED, "This was to be measured only.")

        context = contextvars.copy_context()
        context.run(metering.current_meter.set, metering.JobMeter(judge=judge))
        messages = [{"role": message.role, "content": message.content} for message in conversation(length)]
        body = orjson.dumps({"model": self._settings.served_name, "messages": messages, "max_tokens": 1} | fields)
        headers = {"content-type": "application/json"}
        async with Exchange(
            self.asgi, "POST", "/v1/chat/completions", headers=headers, body=body, context=context
        ) as exchange:
            await exchange.whole()
        return seen[0] if seen else None


def _metered_engine(
    llm: Any, prompts: Prompts, settings: Settings, constrain: metered_engine.Constrain
) -> metered_engine.MeteredEngine:
    """The engine client for the application. Logits processors come from LOGITS_PROCESSORS or plugins."""
    plugins = importlib.metadata.entry_points(group="vllm.logits_processors")
    return metered_engine.MeteredEngine(
        llm,
        partial(detokenizer, llm.renderer.tokenizer),
        visible=lambda ids: prompts.visible(prompts.decode(ids)),
        constrain=constrain,
        patience_s=settings.engine_stall_seconds,
        custom_processors=bool(llm.model_config.logits_processors or plugins),
    )


def detokenizer(tokenizer: Any, params: Any, prompt_ids: Sequence[int]) -> Detokenizer:
    """A second detokeniser for an answer, from its sampling parameters and prompt."""
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    request = types.SimpleNamespace(
        request_id="", sampling_params=params, prompt_token_ids=list(prompt_ids), prompt_embeds=None
    )
    made: Detokenizer = IncrementalDetokenizer.from_new_request(tokenizer if params.detokenize else None, request)
    return made


def _application() -> tuple[Any, Any]:
    """vLLM's `build_app` and `init_app_state`, which older releases have elsewhere with the same signatures."""
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
    except ModuleNotFoundError:
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
    return build_app, init_app_state
