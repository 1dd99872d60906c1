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

_RETIRED_BY = {
    "vLLM no longer has it": (
        "CALCULATE_KV_SCALES ENABLE_LORA_BIAS LONG_LORA_SCALING_FACTORS LORA_EXTRA_VOCAB_SIZE "
        "MAX_LONG_PARTIAL_PREFILLS MAX_NUM_PARTIAL_PREFILLS NUM_SCHEDULER_STEPS OPENAI_RESPONSE_ROLE "
        "OVERRIDE_ATTENTION_DTYPE PREEMPTION_CHECK_PERIOD PREEMPTION_CPU_CAPACITY PREEMPTION_MODE "
        "QUANTIZATION_PARAM_PATH SCHEDULER_DELAY_FACTOR SWAP_SPACE TOKENIZER_POOL_EXTRA_CONFIG "
        "TOKENIZER_POOL_SIZE TOKENIZER_POOL_TYPE USE_V2_BLOCK_MANAGER"
    ),
    "use SPECULATIVE_CONFIG": (
        "NGRAM_PROMPT_LOOKUP_MAX NGRAM_PROMPT_LOOKUP_MIN NUM_LOOKAHEAD_SLOTS NUM_SPECULATIVE_TOKENS "
        "SPECULATIVE_DISABLE_BY_BATCH_SIZE SPECULATIVE_DRAFT_TENSOR_PARALLEL_SIZE SPECULATIVE_ENFORCE_EAGER "
        "SPECULATIVE_MAX_MODEL_LEN SPECULATIVE_METHOD SPECULATIVE_MODEL SPECULATIVE_MODEL_REVISION "
        "SPECULATIVE_QUANTIZATION"
    ),
    "deltas are merged while RunPod accepts them, without a fixed size": (
        "BATCH_SIZE_GROWTH_FACTOR DEFAULT_BATCH_SIZE DEFAULT_BATCH_SIZE_GROWTH_FACTOR DEFAULT_MIN_BATCH_SIZE "
        "MIN_BATCH_SIZE"
    ),
    "use EPLB_CONFIG": "EPLB_LOG_BALANCEDNESS EPLB_STEP_INTERVAL EPLB_WINDOW_SIZE NUM_REDUNDANT_EXPERTS",
    "use STRUCTURED_OUTPUTS_CONFIG": (
        "GUIDED_DECODING_BACKEND GUIDED_DECODING_DISABLE_ADDITIONAL_PROPERTIES "
        "GUIDED_DECODING_DISABLE_ANY_WHITESPACE GUIDED_DECODING_DISABLE_FALLBACK"
    ),
    "vLLM runs inside the worker's process, without a server of its own": (
        "DISABLE_FRONTEND_MULTIPROCESSING VLLM_BASE_URL"
    ),
    "prompts are never logged unless LOG_PROMPTS is true": "DISABLE_LOGGING_REQUEST DISABLE_LOG_REQUESTS",
    "vLLM no longer has it; use MAX_CUDAGRAPH_CAPTURE_SIZE": "MAX_CONTEXT_LEN_TO_CAPTURE MAX_SEQ_LEN_TO_CAPTURE",
    "models are cached in HF_HOME or DOWNLOAD_DIR": "BASE_PATH",
    "use COMPILATION_CONFIG (cudagraph_capture_sizes)": "CUDA_GRAPH_SIZES",
    "the installed vLLM build decides the device": "DEVICE",
    "use MM_PROCESSOR_CACHE_GB": "DISABLE_MM_PREPROCESSOR_CACHE",
    "use MM_ENCODER_TP_MODE": "ENABLE_MULTIMODAL_ENCODER_DATA_PARALLEL",
    "a job is streamed if its `stream` is true": "ENABLE_STREAMING",
    "use LOGITS_PROCESSORS": "LOGITS_PROCESSOR_PATTERN",
    "use POOLER_CONFIG": "OVERRIDE_POOLER_CONFIG",
    "OpenAI routes always answer as OpenAI does": "RAW_OPENAI_OUTPUT",
    "use MAX_JOB_SECONDS, or RunPod's execution timeout": "REQUEST_TIMEOUT",
    "a PROFILE's phrases decide, without a model": "USE_LLM_ROUTER",
    "RunPod checks the keys of those who call the endpoint": "VLLM_API_KEY",
    "use ATTENTION_BACKEND": "VLLM_ATTENTION_BACKEND",
    "RunPod's RUNPOD_INIT_TIMEOUT bounds a start": "VLLM_STARTUP_TIMEOUT",
    "the image decides its CUDA version": "WORKER_CUDA_VERSION",
    "use DISTRIBUTED_EXECUTOR_BACKEND": "WORKER_USE_RAY",
}
RETIRED: Mapping[str, str] = {name: reason for reason, names in _RETIRED_BY.items() for name in names.split()}
"""Name -> why it is ignored, or what to use instead."""


def meant_by(name: str) -> str | None:
    """The variable for which `name` is another worker's name."""
    found = (row.ours for row in RENAMED if name != row.ours and re.fullmatch(row.pattern, name))
    return next(found, None)
