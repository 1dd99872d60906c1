"""Engine options: settings and environment variables as words for vLLM's command line parser.

The parser is vLLM's (created from its dataclass, so values have the same meaning as for `vllm serve`) and is passed in
by engine_arguments.py: this module does not import vLLM.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

from llmpod.worker.engine.start import lora
from llmpod.worker.environ import NONE_WORDS, Correction, ignored, refuse_mistyped
from llmpod.worker.errors import StartError
from llmpod.worker.event_log import Emit
from llmpod.worker.settings import Settings

# Engine arguments whose upper-case name is an environment variable of other software.
NOT_FROM_ENVIRONMENT = {
    "model": "MODEL_NAME is ours",
    "hf_token": "the hub client reads HF_TOKEN itself, as text",
    "log_level": "LOG_LEVEL is ours",
    "allowed_local_media_path": "clients must not read the worker's files",
    "allowed_media_domains": "ours: media are fetched by the worker, not by vLLM",
    "lora_modules": "LORA_MODULES is ours",
    "chat_template": "CUSTOM_CHAT_TEMPLATE is ours",
    "enable_log_outputs": "LOG_PROMPTS is ours",
    "enable_log_deltas": "LOG_PROMPTS is ours",
    "enable_log_requests": "LOG_PROMPTS is ours",
    "max_log_len": "LOG_PROMPTS is ours",
    "master_addr": "RunPod sets it on clusters; a serverless worker is one node",
    "master_port": "as above",
    "nnodes": "as above",
    "node_rank": "as above",
}


# Of those, and of the arguments of vLLM's server, what a machine sets without meaning vLLM.
_NOBODYS = {"hf_token", "host", "port", "help", "config", "master_addr", "master_port", "nnodes", "node_rank"}

# Arguments whose settings have the same name.
_OF_ONE_NAME = (
    *("tokenizer", "tokenizer_revision", "quantization", "max_model_len", "max_num_seqs", "gpu_memory_utilization"),
    *("tensor_parallel_size", "trust_remote_code", "enable_chunked_prefill"),
)

# Arguments that are derived here unless the operator sets them.
_YIELDING = ("max_lora_rank", "max_loras", "max_cpu_loras", "tool_call_parser", "structured_outputs_config")

# The demonstration model was never taught tools or JSON. With a constraint it writes both, but left to itself it would
# fill JSON with blank lines.
_DEMO: dict[str, str] = {
    "tool_call_parser": "hermes",
    "structured_outputs_config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
}


@dataclass(frozen=True)
class BatchedTokens:
    """MAX_NUM_BATCHED_TOKENS for the engine, and why it differs from the setting."""

    value: int | None
    reason: str | None = None


def clamp_batched_tokens(
    requested: int | None, *, max_model_len: int, max_num_seqs: int | None, chunked_prefill: bool | None
) -> BatchedTokens:
    """Raise MAX_NUM_BATCHED_TOKENS to the engine's minimum.

    Without chunked prefill a prompt must fit one step, so vLLM refuses less than MAX_MODEL_LEN; and a step holds at
    least one token of each running request, so it refuses less than MAX_NUM_SEQS (vllm/config/scheduler.py).
    Chunked prefill counts only when it was asked for: vLLM turns it off by itself for some models.
    """
    if requested is None:
        return BatchedTokens(None)
    value, reason = requested, None
    if chunked_prefill is not True and value < max_model_len:
        value, reason = max_model_len, f"below MAX_MODEL_LEN ({max_model_len}) without ENABLE_CHUNKED_PREFILL=true"
    if max_num_seqs is not None and value < max_num_seqs:
        value, reason = max_num_seqs, f"below MAX_NUM_SEQS ({max_num_seqs})"
    return BatchedTokens(value, reason)


def tensor_parallel_size(gpus: int, attention_heads: int) -> int:
    """Most GPUs that can share the model: each must get the same number of attention heads."""
    return max((n for n in range(1, gpus + 1) if attention_heads % n == 0), default=1)


class Parser(argparse.ArgumentParser):
    """vLLM's argument parser, with exceptions instead of an exit."""

    def error(self, message: str) -> NoReturn:
        words = message.removeprefix("argument ").split(":", 1)
        name = words[0].split("/")[0].strip().lstrip("-").replace("-", "_").upper()
        reason = words[-1].strip()
        raise StartError(f"{name}: {reason}.", "Correct or unset it.", setting=name)


def command_line(
    parser: argparse.ArgumentParser,
    fields: Collection[str],
    settings: Settings,
    environment: Mapping[str, str],
    emit: Emit,
    *,
    on_cpu: bool,
) -> list[str]:
    """The words that `parser` turns into engine arguments; `fields` are the names of vLLM's dataclass.

    MAX_NUM_BATCHED_TOKENS and TENSOR_PARALLEL_SIZE's default are not among them: both depend on the model's config.

    Raises:
        StartError: a variable in `environment` has a name like an argument's, or is not a boolean where required.
    """
    arguments = {action.dest: action for action in parser._actions if action.option_strings and action.dest in fields}
    open_names = {name.upper(): name for name in arguments if name not in NOT_FROM_ENVIRONMENT}
    taken = {*Settings.model_fields, *NOT_FROM_ENVIRONMENT}
    refuse_mistyped(environment, open_names, {name.upper() for name in taken})
    others = {action.dest for action in parser._actions} - {name.lower() for name in open_names} - _NOBODYS
    for variable in sorted({name.upper() for name in others} & environment.keys()):
        reason = NOT_FROM_ENVIRONMENT.get(variable.lower(), "it is of vLLM's server, which does not run here")
        emit("setting_corrected", **dataclasses.asdict(ignored(variable, environment[variable], reason)))

    # Progress bars would break the form of the log; first, so that the environment can have them back.
    words: list[str] = ["--no-use-tqdm-on-load"] if "use_tqdm_on_load" in arguments else []
    for variable in sorted(open_names.keys() & environment.keys()):
        name, value = open_names[variable], environment[variable].strip()
        correction = _correction(name, value, parser.get_default(name))
        if correction is not None:
            emit("setting_corrected", **dataclasses.asdict(correction))
        elif value:
            words += _option(arguments[name], name, value)
    for name, chosen in _from_settings(settings, on_cpu=on_cpu).items():
        if chosen is not None and not (name in _YIELDING and name.upper() in environment):
            words += _option(arguments[name], name, str(chosen))
    return words


def _from_settings(settings: Settings, *, on_cpu: bool) -> dict[str, str | int | float | bool | None]:
    """Engine argument -> value; None leaves it to vLLM."""
    cpu_eager = True if on_cpu else None  # compiling for a CPU takes minutes
    return {
        **{name: getattr(settings, name) for name in _OF_ONE_NAME},
        "model": settings.model,
        "served_model_name": settings.served_name,
        "revision": settings.model_revision,
        # On CPUs with AMX, bfloat16 attention can end the engine's process with SIGILL before oneDNN's first product.
        "dtype": settings.dtype or ("float32" if on_cpu else None),
        "enforce_eager": cpu_eager if settings.enforce_eager is None else settings.enforce_eager,
        **_lora(settings),
        **(_DEMO if settings.is_demo else {}),
    }


def _lora(settings: Settings) -> dict[str, str | int | float | bool | None]:
    """Arguments for the adapters: all in memory, the first few in one batch."""
    if not settings.lora_modules:
        return {}
    count = len(settings.lora_modules)
    return {
        "enable_lora": True,
        "max_lora_rank": lora.rank_for(settings.lora_modules, settings.model_names),
        "max_loras": min(count, 4),
        "max_cpu_loras": max(count, 4),
    }


def _option(action: argparse.Action, name: str, value: str) -> list[str]:
    """One variable as command line words, in the form its argument has."""
    flag = max((option for option in action.option_strings if not option.startswith("--no-")), key=len)
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        word = value.strip().lower()
        if word in ("1", "true", "yes", "on"):
            return [flag]
        if word in ("0", "false", "no", "off"):
            return [f"--no-{flag[2:]}"] if f"--no-{flag[2:]}" in action.option_strings else []
        raise StartError(
            f"{name.upper()}={value!r} is neither true nor false.", "Correct or unset it.", setting=name.upper()
        )
    if action.nargs in ("+", "*") and name != "served_model_name":
        return [flag, *value.replace(",", " ").split()]
    return [f"{flag}={value}"]


def _correction(name: str, value: str, default: object) -> Correction | None:
    """Correct `None` as a word, or 0 where vLLM's default is "not set", as web forms send them (ranks start at 0)."""
    if value.lower() in NONE_WORDS:
        return Correction(name.upper(), value, None, "the word stands for no value")
    if value == "0" and default is None and not name.endswith("_rank"):
        return Correction(name.upper(), value, None, "0 is not a valid value; left to vLLM")
    return None
