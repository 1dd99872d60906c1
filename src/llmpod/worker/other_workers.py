"""Environment variables of other vLLM workers: renamed, refused or ignored. Pure data, used by `environ.load`.

A variable whose loss would change what is served stops the start (RENAMED, REFUSED). One that has no meaning here is
ignored, and an event says so (RETIRED). All others bear the name of a setting or of an engine argument.
tests/worker/test_other_workers.py goes through every variable of RunPod's own vLLM worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Renamed(NamedTuple):
    """Other names of one of our variables."""

    ours: str
    pattern: str
    examples: tuple[str, ...]


RENAMED = (
    Renamed(
        "MODEL_NAME",
        r"(HF_|HUGGING_?FACE_|VLLM_|LLM_)?MODEL(_?(ID|PATH|NAME|NAME_OR_PATH|REPO|REPO_ID|DIR))?",
        ("MODEL", "MODEL_ID", "MODEL_PATH", "HF_MODEL"),
    ),
    Renamed(
        "HF_TOKEN",
        r"(HF|HUGGING_?FACE)_((API|ACCESS|AUTH)_)?(TOKEN|KEY|API_KEY)",
        ("HUGGING_FACE_TOKEN", "HUGGINGFACE_TOKEN", "HF_API_TOKEN"),
    ),
    Renamed("CUSTOM_CHAT_TEMPLATE", r"CHAT_TEMPLATE", ("CHAT_TEMPLATE",)),
)

REFUSED: Mapping[str, str] = {
    "ROPE_SCALING": 'Give it in HF_OVERRIDES: {"rope_scaling": …}.',
    "ROPE_THETA": 'Give it in HF_OVERRIDES: {"rope_theta": …}.',
    "TASK": "Set RUNNER=pooling for a model that embeds or scores; unset it for one that generates.",
    "TENSORIZE": "Use LOAD_FORMAT=tensorizer with MODEL_LOADER_EXTRA_CONFIG.",
    "TENSORIZER_URI": "Use LOAD_FORMAT=tensorizer with MODEL_LOADER_EXTRA_CONFIG.",
    "VLLM_CONFIG_FILE": "Give each of its arguments as a variable: max-model-len: 4096 is MAX_MODEL_LEN=4096.",
    "VLLM_EXTRA_ARGS": "Give each argument as a variable: --max-model-len 4096 is MAX_MODEL_LEN=4096.",
}
"""Name -> what to do instead."""

_MERGED = "deltas are merged while RunPod accepts them, without a fixed size"
_SPECULATIVE = "use SPECULATIVE_CONFIG"
_STRUCTURED = "use STRUCTURED_OUTPUTS_CONFIG"
_GONE = "vLLM no longer has it"
_IN_PROCESS = "vLLM runs inside the worker's process, without a server of its own"

RETIRED: Mapping[str, str] = {
    "BASE_PATH": "models are cached in HF_HOME or DOWNLOAD_DIR",
    "BATCH_SIZE_GROWTH_FACTOR": _MERGED,
    "CALCULATE_KV_SCALES": _GONE,
    "CUDA_GRAPH_SIZES": "use COMPILATION_CONFIG (cudagraph_capture_sizes)",
    "DEFAULT_BATCH_SIZE": _MERGED,
    "DEFAULT_BATCH_SIZE_GROWTH_FACTOR": _MERGED,
    "DEFAULT_MIN_BATCH_SIZE": _MERGED,
    "DEVICE": "the installed vLLM build decides the device",
    "DISABLE_FRONTEND_MULTIPROCESSING": _IN_PROCESS,
    "DISABLE_LOGGING_REQUEST": "prompts are never logged unless LOG_PROMPTS is true",
    "DISABLE_LOG_REQUESTS": "prompts are never logged unless LOG_PROMPTS is true",
    "DISABLE_MM_PREPROCESSOR_CACHE": "use MM_PROCESSOR_CACHE_GB",
    "ENABLE_LORA_BIAS": _GONE,
    "ENABLE_MULTIMODAL_ENCODER_DATA_PARALLEL": "use MM_ENCODER_TP_MODE",
    "ENABLE_STREAMING": "a job is streamed if its `stream` is true",
    "EPLB_LOG_BALANCEDNESS": "use EPLB_CONFIG",
    "EPLB_STEP_INTERVAL": "use EPLB_CONFIG",
    "EPLB_WINDOW_SIZE": "use EPLB_CONFIG",
    "GUIDED_DECODING_BACKEND": _STRUCTURED,
    "GUIDED_DECODING_DISABLE_ADDITIONAL_PROPERTIES": _STRUCTURED,
    "GUIDED_DECODING_DISABLE_ANY_WHITESPACE": _STRUCTURED,
    "GUIDED_DECODING_DISABLE_FALLBACK": _STRUCTURED,
    "LOGITS_PROCESSOR_PATTERN": "use LOGITS_PROCESSORS",
    "LONG_LORA_SCALING_FACTORS": _GONE,
    "LORA_EXTRA_VOCAB_SIZE": _GONE,
    "MAX_CONTEXT_LEN_TO_CAPTURE": "vLLM no longer has it; use MAX_CUDAGRAPH_CAPTURE_SIZE",
    "MAX_LONG_PARTIAL_PREFILLS": _GONE,
    "MAX_NUM_PARTIAL_PREFILLS": _GONE,
    "MAX_SEQ_LEN_TO_CAPTURE": "vLLM no longer has it; use MAX_CUDAGRAPH_CAPTURE_SIZE",
    "MIN_BATCH_SIZE": _MERGED,
    "NGRAM_PROMPT_LOOKUP_MAX": _SPECULATIVE,
    "NGRAM_PROMPT_LOOKUP_MIN": _SPECULATIVE,
    "NUM_LOOKAHEAD_SLOTS": _SPECULATIVE,
    "NUM_REDUNDANT_EXPERTS": "use EPLB_CONFIG",
    "NUM_SCHEDULER_STEPS": _GONE,
    "NUM_SPECULATIVE_TOKENS": _SPECULATIVE,
    "OPENAI_RESPONSE_ROLE": _GONE,
    "OVERRIDE_ATTENTION_DTYPE": _GONE,
    "OVERRIDE_POOLER_CONFIG": "use POOLER_CONFIG",
    "PREEMPTION_CHECK_PERIOD": _GONE,
    "PREEMPTION_CPU_CAPACITY": _GONE,
    "PREEMPTION_MODE": _GONE,
    "QUANTIZATION_PARAM_PATH": _GONE,
    "RAW_OPENAI_OUTPUT": "OpenAI routes always answer as OpenAI does",
    "REQUEST_TIMEOUT": "use MAX_JOB_SECONDS, or RunPod's execution timeout",
    "SCHEDULER_DELAY_FACTOR": _GONE,
    "SPECULATIVE_DISABLE_BY_BATCH_SIZE": _SPECULATIVE,
    "SPECULATIVE_DRAFT_TENSOR_PARALLEL_SIZE": _SPECULATIVE,
    "SPECULATIVE_ENFORCE_EAGER": _SPECULATIVE,
    "SPECULATIVE_MAX_MODEL_LEN": _SPECULATIVE,
    "SPECULATIVE_METHOD": _SPECULATIVE,
    "SPECULATIVE_MODEL": _SPECULATIVE,
    "SPECULATIVE_MODEL_REVISION": _SPECULATIVE,
    "SPECULATIVE_QUANTIZATION": _SPECULATIVE,
    "SWAP_SPACE": _GONE,
    "TOKENIZER_POOL_EXTRA_CONFIG": _GONE,
    "TOKENIZER_POOL_SIZE": _GONE,
    "TOKENIZER_POOL_TYPE": _GONE,
    "USE_LLM_ROUTER": "a PROFILE's phrases decide, without a model",
    "USE_V2_BLOCK_MANAGER": _GONE,
    "VLLM_API_KEY": "RunPod checks the keys of those who call the endpoint",
    "VLLM_ATTENTION_BACKEND": "use ATTENTION_BACKEND",
    "VLLM_BASE_URL": _IN_PROCESS,
    "VLLM_STARTUP_TIMEOUT": "RunPod's RUNPOD_INIT_TIMEOUT bounds a start",
    "WORKER_CUDA_VERSION": "the image decides its CUDA version",
    "WORKER_USE_RAY": "use DISTRIBUTED_EXECUTOR_BACKEND",
}
"""Name -> why it is ignored, or what to use instead."""


def meant_by(name: str) -> str | None:
    """The variable for which `name` is another worker's name."""
    found = (row.ours for row in RENAMED if name != row.ours and re.fullmatch(row.pattern, name))
    return next(found, None)
