"""Engine arguments: settings and environment variables parsed by vLLM's own parser, with its defaults.

engine_options.py decides which words the parser gets; this module calls vLLM with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmpod.worker.engine import output_bundles
from llmpod.worker.engine.start import engine_options
from llmpod.worker.environ import Correction, provide
from llmpod.worker.errors import StartError
from llmpod.worker.event_log import Emit
from llmpod.worker.settings import Settings

CPU_EXTENSION = "llmpod.worker.engine.cpu_seeds.Extension"


class Arguments(NamedTuple):
    """Arguments that vLLM is started with."""

    engine: Any  # its AsyncEngineArgs
    application: Any  # what its application reads: the parser of tool calls, the chat template, the adapters …


def read(settings: Settings, environment: Mapping[str, str], emit: Emit) -> Arguments:
    """Build vLLM's arguments from the settings and from variables named after arguments.

    Raises:
        StartError: a variable's name resembles an argument's, or vLLM's parser refuses its value.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    from vllm.platforms import current_platform

    make_arg_parser, BaseFrontendArgs = _command_line()  # noqa: N806 - a class of vLLM's
    on_cpu = current_platform.is_cpu()
    parser = make_arg_parser(engine_options.Parser(prog="worker", add_help=False))
    # The application's arguments that affect answers; not those of a server: host, TLS, keys.
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
    if on_cpu and not args.worker_extension_cls:
        args.worker_extension_cls = CPU_EXTENSION
    if not args.scheduler_cls and args.diffusion_config is None:  # these have a scheduler of their own
        args.scheduler_cls = output_bundles.scheduler_name(settings.max_stream_chunks_per_s)
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
    return Arguments(args, frontend)


def _command_line() -> tuple[Any, Any]:
    """vLLM's `make_arg_parser` and `BaseFrontendArgs`, which older releases have elsewhere."""
    try:
        from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs, make_arg_parser
    except ModuleNotFoundError:
        from vllm.entrypoints.openai.cli_args import BaseFrontendArgs, make_arg_parser
    return make_arg_parser, BaseFrontendArgs


def _read_parsers(frontend: Any, environment: Mapping[str, str]) -> None:
    """Import the plugins of tool and reasoning parsers, as `vllm serve` does, and check that the parsers exist.

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
        frontend.enable_auto_tool_choice = True  # naming a parser implies it
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
                f"{setting}={name!r} is not a parser of the installed vLLM.",
                f"Use one of {', '.join(known)}.",
                setting=setting,
            )


def _all_gpus(args: Any, gpus: int, emit: Emit) -> int:
    if gpus <= 1:
        return 1
    config = args.create_model_config()
    size = engine_options.tensor_parallel_size(gpus, config.hf_text_config.num_attention_heads)
    emit("tensor_parallel", gpus=gpus, used=size)
    return size


def _text_or_file(template: str | None) -> str | None:
    """A chat template given as text (which then contains a brace) or as a file's path."""
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
