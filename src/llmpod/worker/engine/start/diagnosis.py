"""Diagnosis of failed engine starts: a table of error patterns with cause and cure.

vLLM logs the cause in one of its child processes and then raises "see above", so errors of child processes are written
to a file (`event_log.logging_config`) and read here together with the exception.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmpod.worker.engine.start import lora
from llmpod.worker.engine.start.hub import Repository
from llmpod.worker.errors import StartError
from llmpod.worker.settings import Settings

NO_GPU_CURE = "Run it on a GPU, or install the CPU build (make setup does)."


@dataclass(frozen=True)
class StartupErrorRule:
    """An error pattern with its cause. In `cause` and `cure`, {1} is the first group and {model} the model."""

    pattern: str
    cause: str
    cure: str
    setting: str | None = None


# First match wins: the specific before the general.
STARTUP_ERROR_RULES = (
    StartupErrorRule(
        r"access a gated repo|Cannot access gated repo|GatedRepoError|access to model .* is restricted"
        r"|awaiting a review",
        "{model} is a gated model and this worker may not download it.",
        "Accept its licence on Hugging Face and set HF_TOKEN to a token of that account.",
        "HF_TOKEN",
    ),
    StartupErrorRule(  # the hub says 401 of a model that does not exist, too
        r"RepositoryNotFoundError|Repository Not Found for url",
        "Hugging Face has no model {model}, or not for this worker: a private one is not found without its token.",
        "Set MODEL_NAME to a Hugging Face id (owner/name) or a folder with config.json; a private one needs HF_TOKEN.",
        "MODEL_NAME",
    ),
    StartupErrorRule(
        r"Access to this resource is disabled|DisabledRepoError",
        "Hugging Face has disabled {model}.",
        "Set MODEL_NAME to another model.",
        "MODEL_NAME",
    ),
    StartupErrorRule(
        r"403 Forbidden|403 Client Error",
        "Hugging Face does not let this worker's token read {model}.",
        "Give the token of HF_TOKEN read access to it (a fine-grained one: to public gated repositories, too).",
        "HF_TOKEN",
    ),
    StartupErrorRule(
        r"401 Client Error|Invalid credentials|Invalid user token|Invalid username or password|token .*expired",
        "Hugging Face refused the token.",
        "Set HF_TOKEN to a valid token with read access to {model}, or unset it for a public model.",
        "HF_TOKEN",
    ),
    StartupErrorRule(
        r"is not a valid git identifier|RevisionNotFoundError|Revision Not Found",
        "{model} has no such revision.",
        "Set MODEL_REVISION to a branch, tag or commit of the model, or unset it.",
        "MODEL_REVISION",
    ),
    StartupErrorRule(
        r"We couldn't connect|LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled"
        r"|Max retries exceeded|Name or service not known|Temporary failure in name resolution|ConnectError"
        r"|Failed to resolve|Network is unreachable|Connection refused",
        "{model} is not on this machine and Hugging Face cannot be reached.",
        "Bake the model into the image, mount a volume that has it (HF_HOME), or set MODEL_NAME to a folder.",
        "MODEL_NAME",
    ),
    StartupErrorRule(
        r"404 Client Error|is not a local folder and is not a valid model identifier"
        r"|Repo id must|Incorrect path_or_model_id|does not appear to have a file named config\.json"
        r"|Invalid repository ID",
        "The model {model} was not found.",
        "Set MODEL_NAME to a Hugging Face id (owner/name) or a folder with config.json; a private one needs HF_TOKEN.",
        "MODEL_NAME",
    ),
    StartupErrorRule(
        r"estimated maximum model length is (\d+)",
        "The KV cache has no room for one request of MAX_MODEL_LEN tokens.",
        "Set MAX_MODEL_LEN={1} or less, raise GPU_MEMORY_UTILIZATION, or use more GPUs (TENSOR_PARALLEL_SIZE).",
        "MAX_MODEL_LEN",
    ),
    StartupErrorRule(
        r"No available memory for the cache blocks|less than desired GPU memory utilization",
        "The model leaves no memory for the KV cache.",
        "Lower MAX_MODEL_LEN or MAX_NUM_SEQS, raise GPU_MEMORY_UTILIZATION, or use a larger GPU.",
        "MAX_MODEL_LEN",
    ),
    StartupErrorRule(
        r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate|exit code: -9",
        "The model does not fit into memory.",
        "Use a larger GPU, several of them (TENSOR_PARALLEL_SIZE), a quantised model, or a smaller MAX_MODEL_LEN.",
        "TENSOR_PARALLEL_SIZE",
    ),
    StartupErrorRule(
        r"greater than the derived max_model_len \(.*?=\s*(\d+)",
        "MAX_MODEL_LEN is longer than what the model was made for.",
        "Set MAX_MODEL_LEN={1} or less, or unset it.",
        "MAX_MODEL_LEN",
    ),
    StartupErrorRule(
        r"(?i)bitsandbytes",
        "This vLLM has no bitsandbytes of its own: it left the core in 0.28.",
        "Install vllm-bnb-plugin into the image, use an AWQ or GPTQ model, or set QUANTIZATION=fp8_per_tensor.",
        "QUANTIZATION",
    ),
    StartupErrorRule(
        r"(?i)\bgguf\b",
        "This vLLM has no GGUF of its own: it left the core in 0.28.",
        "Use the model's safetensors version, or install vLLM's GGUF plugin into the image.",
        "QUANTIZATION",
    ),
    StartupErrorRule(
        r"Unknown quantization method: (\S+?)[.\s]|quantization.*does not match",
        "The model or this GPU does not support the quantisation that was asked for.",
        "Unset QUANTIZATION to use what the model's config says, or choose a model quantised the way you want.",
        "QUANTIZATION",
    ),
    StartupErrorRule(
        r"driver version is insufficient|CUDA driver initialization failed|Error 803|unsupported display driver"
        r"|forward compatibility was attempted|no kernel image is available|provided PTX was compiled",
        "The host's NVIDIA driver or GPU does not suit this image's CUDA.",
        "Restrict the endpoint to newer CUDA versions (allowedCudaVersions), or choose another GPU type.",
    ),
    StartupErrorRule(
        r"Failed to infer device type|no CUDA-capable device|No CUDA GPUs are available|Found no NVIDIA driver",
        "No GPU is visible to this worker.",
        NO_GPU_CURE,
    ),
    StartupErrorRule(
        r"trust_remote_code=True|--trust-remote-code",  # an engine that crashes prints trust_remote_code=False
        "{model} needs Python code of its own to run.",
        "If you trust its authors, set TRUST_REMOTE_CODE=true.",
        "TRUST_REMOTE_CODE",
    ),
    StartupErrorRule(
        r"Model architectures? .* (?:are|is) not supported|has no vLLM implementation"
        r"|does not recognize this architecture",
        "This vLLM release does not know the model's architecture.",
        "Use a model it supports, or a newer image.",
        "MODEL_NAME",
    ),
    StartupErrorRule(
        r"Total number of attention heads \((\d+)\)",
        "The model's {1} attention heads cannot be shared evenly by TENSOR_PARALLEL_SIZE GPUs.",
        "Set TENSOR_PARALLEL_SIZE to a divisor of {1}, or unset it.",
        "TENSOR_PARALLEL_SIZE",
    ),
    StartupErrorRule(
        r"max_num_batched_tokens",
        "vLLM refuses MAX_NUM_BATCHED_TOKENS.",
        "Unset it, or set it to at least MAX_MODEL_LEN and MAX_NUM_SEQS.",
        "MAX_NUM_BATCHED_TOKENS",
    ),
    StartupErrorRule(
        r"exit code: -4\b",
        "The engine's process was ended by an illegal instruction (bfloat16 attention on a CPU with AMX).",
        "Set DTYPE=float32.",
        "DTYPE",
    ),
    StartupErrorRule(
        r"only pre-sharded checkpoints",
        "{model} is not saved in parts by GPU, which this LOAD_FORMAT reads.",
        "Unset LOAD_FORMAT, or save the model with vLLM's save_sharded_state for as many GPUs.",
        "LOAD_FORMAT",
    ),
    StartupErrorRule(
        r"Cannot find any model weights",
        "{model} has no weights, or none of the kind that LOAD_FORMAT reads.",
        "Unset LOAD_FORMAT, or download or copy the model again.",
        "LOAD_FORMAT",
    ),
    StartupErrorRule(
        r"SafetensorError|safetensors_rust",
        "The weights of {model} are damaged or incomplete.",
        "Download or copy the model again.",
        "MODEL_NAME",
    ),
    StartupErrorRule(
        r"PermissionError|Permission denied: '([^']+)'",
        "The worker may not write where models are cached.",
        "Make the folder (HF_HOME) writable for the worker's user, or build the image with --build-arg RUN_AS=root.",
        "HF_HOME",
    ),
    StartupErrorRule(
        r"No space left on device", "The disk is full.", "Give the container more disk, or a volume for HF_HOME."
    ),
)


def examine(settings: Settings) -> None:
    """Check what can be checked before vLLM is imported, which takes long.

    Raises:
        StartError: the model's folder is not there, or an adapter in a folder cannot be served.
    """
    for setting, name in (("MODEL_NAME", settings.model), ("TOKENIZER", settings.tokenizer)):
        if name is None or not name.startswith(("/", "./", "../")):
            continue
        if not os.path.exists(name):  # noqa: PTH110 - Path's raises where it may not look
            raise StartError(
                f"{setting}={name!r}: there is no such folder.",
                "Set it to a folder that the worker may read, or to a Hugging Face id (owner/name).",
                setting=setting,
            )
    lora.rank_for(settings.lora_modules, settings.model_names)


def diagnose(
    error: BaseException, settings: Settings, error_log: str = "", repository: Repository | None = None
) -> StartError:
    """Explain a failed start. `error_log`: errors logged by the engine's processes.

    `repository`: what of the hub the error is about, if it is known; else the model.
    """
    if isinstance(error, StartError):
        return error
    about = repository or Repository("MODEL_NAME", settings.model)
    chain = []
    link: BaseException | None = error
    while link is not None:
        chain.append(f"{type(link).__name__}: {link}")
        link = link.__cause__ or link.__context__
    text = "\n".join([*chain, error_log])
    for symptom in STARTUP_ERROR_RULES:
        match = re.search(symptom.pattern, text)
        if match:
            # str.format counts from 0: the whole match is {0}, its first group {1}.
            parts = (match.group(0), *match.groups(default=""))
            cure = symptom.cure.replace("MODEL_NAME", about.setting)
            return StartError(
                symptom.cause.format(*parts, model=about.name),
                cure.format(*parts, model=about.name),
                setting=about.setting if symptom.setting == "MODEL_NAME" else symptom.setting,
            )
    return StartError(f"The engine did not start: {_root(text)}", "The log above has the details.")


def read_error_log(path: Path, limit_bytes: int = 20_000) -> str:
    """Read the end of the engine processes' error log; empty if there is none."""
    try:
        return path.read_bytes()[-limit_bytes:].decode(errors="replace")
    except OSError:
        return ""


def _root(text: str) -> str:
    """The last line that looks like an exception: the deepest cause in the log."""
    lines = re.findall(r"^(?:.*\b)?(\w+(?:Error|Exception)\b: .+)$", text, re.MULTILINE)
    telling = [line for line in lines if "See root cause above" not in line and "See stack trace" not in line]
    return (telling or lines or text.strip().splitlines() or ["no reason was given."])[-1][:500]
