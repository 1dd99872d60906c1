"""Settings and environment, as the real vLLM's arguments; and its own check of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.engine.start import engine_arguments
from llmpod.worker.engine.start.engine_options import clamp_batched_tokens, tensor_parallel_size
from llmpod.worker.environ import load
from llmpod.worker.errors import StartError
from llmpod.worker.other_workers import RETIRED
from llmpod.worker.settings import DEMO_MODEL, Settings
from tests.worker.conftest import Events


def build(events: Events, environment: dict[str, str] | None = None, **settings: Any) -> Any:
    return engine_arguments.read(Settings(**settings), environment or {}, events.emit).engine


@pytest.mark.parametrize(
    ("requested", "max_model_len", "max_num_seqs", "chunked", "value"),
    [
        (None, 4096, None, None, None),
        (1024, 1024, None, None, 1024),
        (4096, 4096, None, None, 4096),
        (512, 4096, None, None, 4096),
        (512, 4096, None, False, 4096),
        (512, 4096, None, True, 512),
        (8192, 4096, None, None, 8192),
        (512, 256, 1024, None, 1024),
        (64, 4096, 128, True, 128),
    ],
)
def test_batched_tokens_are_clamped_to_what_the_engine_accepts(
    requested: int | None, max_model_len: int, max_num_seqs: int | None, chunked: bool | None, value: int | None
) -> None:
    clamped = clamp_batched_tokens(
        requested, max_model_len=max_model_len, max_num_seqs=max_num_seqs, chunked_prefill=chunked
    )
    assert clamped.value == value
    assert (clamped.reason is None) == (value == requested)


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.none() | st.integers(1, 4096), st.none() | st.booleans())
def test_the_clamp_only_raises_and_only_as_far_as_needed(
    requested: int, max_model_len: int, max_num_seqs: int | None, chunked: bool | None
) -> None:
    value = clamp_batched_tokens(
        requested, max_model_len=max_model_len, max_num_seqs=max_num_seqs, chunked_prefill=chunked
    ).value
    assert value is not None
    assert value >= requested
    assert value in (requested, max_model_len, max_num_seqs)
    assert value >= (max_num_seqs or 1)
    assert chunked or value >= max_model_len


@pytest.mark.parametrize(
    ("given_value", "max_model_len", "used"),
    [("1024", 1024, 1024), ("4096", 4096, 4096), ("512", 4096, 4096), ("0", 4096, None)],
)
def test_each_documented_pair_passes_the_real_engines_own_check(
    clean_environment: pytest.MonkeyPatch, given_value: str, max_model_len: int, used: int | None
) -> None:
    clean_environment.setenv("MAX_NUM_BATCHED_TOKENS", given_value)
    clean_environment.setenv("MAX_MODEL_LEN", str(max_model_len))
    environment = load()
    events = Events()
    args = engine_arguments.read(environment.settings, environment.others, events.emit).engine
    assert args.max_num_batched_tokens == used
    config = args.create_engine_config()  # vLLM's own check: it raises for a pair that it does not accept
    assert config.model_config.max_model_len == max_model_len
    if used is not None:
        assert config.scheduler_config.max_num_batched_tokens == used
    corrected = [event["setting"] for event in events.named("setting_corrected")]
    corrected += [correction.setting for correction in environment.corrections]
    assert corrected == (["MAX_NUM_BATCHED_TOKENS"] if given_value in ("512", "0") else [])


def test_a_word_for_the_batched_tokens_stops_the_start(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MAX_NUM_BATCHED_TOKENS", "abc")
    with pytest.raises(StartError, match=r"MAX_NUM_BATCHED_TOKENS='abc'"):
        load()


def test_without_the_clamp_vllm_would_refuse_the_pair(events: Events) -> None:
    args = build(events, max_model_len=4096, enable_chunked_prefill=False)
    args.max_num_batched_tokens = 512
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        args.create_engine_config()


def test_the_event_says_what_was_raised_and_why(events: Events) -> None:
    args = build(events, max_num_batched_tokens=512, max_model_len=2048)
    assert args.max_num_batched_tokens == 2048
    [event] = events.named("setting_corrected")
    assert (event["setting"], event["given"], event["used"]) == ("MAX_NUM_BATCHED_TOKENS", "512", "2048")
    assert "MAX_MODEL_LEN (2048)" in event["reason"]


@pytest.mark.parametrize(
    ("variable", "value", "field", "typed"),
    [
        ("SEED", "42", "seed", 42),
        ("ENABLE_PREFIX_CACHING", "false", "enable_prefix_caching", False),
        ("ENABLE_PREFIX_CACHING", "1", "enable_prefix_caching", True),
        ("BLOCK_SIZE", "64", "block_size", 64),
        ("MAX_LOGPROBS", "7", "max_logprobs", 7),
        ("OVERRIDE_GENERATION_CONFIG", '{"temperature": 0.5}', "override_generation_config", {"temperature": 0.5}),
        ("LIMIT_MM_PER_PROMPT", '{"image": 2}', "limit_mm_per_prompt", {"image": 2}),
        ("SCHEDULING_POLICY", "priority", "scheduling_policy", "priority"),
        ("KV_CACHE_MEMORY_BYTES", "1073741824", "kv_cache_memory_bytes", 1 << 30),
    ],
)
def test_any_engine_argument_is_taken_from_the_environment_in_vllms_own_type(
    events: Events, variable: str, value: str, field: str, typed: object
) -> None:
    args = build(events, {variable: value})
    assert getattr(args, field) == typed
    assert not events.named("setting_corrected")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"BLOCK_SIZE": "many"}, ["BLOCK_SIZE", "many"]),
        ({"ENABLE_PREFIX_CACHING": "perhaps"}, ["ENABLE_PREFIX_CACHING", "perhaps"]),
        ({"SCHEDULING_POLICY": "lifo"}, ["SCHEDULING_POLICY", "lifo"]),
        ({"OVERRIDE_GENERATION_CONFIG": "{temperature"}, ["OVERRIDE_GENERATION_CONFIG"]),
        ({"ENABLE_PREFIX_CACHE": "1"}, ["ENABLE_PREFIX_CACHE", "ENABLE_PREFIX_CACHING"]),
        ({"PIPELINE_PARALLEL": "2"}, ["PIPELINE_PARALLEL", "PIPELINE_PARALLEL_SIZE"]),
        ({"TOOL_CALL_PARSER": "hermse"}, ["TOOL_CALL_PARSER", "hermse", "hermes"]),
        ({"REASONING_PARSER": "qwen"}, ["REASONING_PARSER", "qwen3"]),
        ({"TOOL_CALL_PARSER": "", "ENABLE_AUTO_TOOL_CHOICE": "true"}, ["ENABLE_AUTO_TOOL_CHOICE", "TOOL_CALL_PARSER"]),
    ],
)
def test_a_bad_or_mistyped_engine_argument_stops_the_start(
    events: Events, environment: dict[str, str], says: list[str]
) -> None:
    with pytest.raises(StartError) as caught:
        build(events, environment)
    assert "\n" not in str(caught.value)
    for word in says:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "parser", "reads_calls"),
    [
        ({}, None, False),
        ({"TOOL_CALL_PARSER": "hermes"}, "hermes", True),
        ({"TOOL_CALL_PARSER": "hermes", "ENABLE_AUTO_TOOL_CHOICE": "true"}, "hermes", True),
        ({"TOOL_CALL_PARSER": "hermes", "ENABLE_AUTO_TOOL_CHOICE": "false"}, "hermes", False),
    ],
)
def test_whoever_names_a_tool_parser_wants_it_used(
    events: Events, environment: dict[str, str], parser: str | None, reads_calls: bool
) -> None:
    _, frontend = engine_arguments.read(Settings(model_name=str(DEMO_MODEL)), environment, events.emit)
    assert (frontend.tool_call_parser, frontend.enable_auto_tool_choice) == (parser, reads_calls)


def test_the_demonstration_model_has_a_tool_parser_and_compact_json_unless_the_operator_says_otherwise(
    events: Events,
) -> None:
    args, frontend = engine_arguments.read(Settings(), {}, events.emit)
    assert (frontend.tool_call_parser, frontend.enable_auto_tool_choice) == ("hermes", True)
    assert args.structured_outputs_config.disable_any_whitespace is True
    args, frontend = engine_arguments.read(
        Settings(), {"TOOL_CALL_PARSER": "llama3_json", "STRUCTURED_OUTPUTS_CONFIG": "{}"}, events.emit
    )
    assert frontend.tool_call_parser == "llama3_json"
    assert args.structured_outputs_config.disable_any_whitespace is False


@pytest.mark.parametrize("variable", ["NUM_GPU_BLOCKS_OVERRIDE", "BLOCK_SIZE", "SPECULATIVE_CONFIG"])
@pytest.mark.parametrize("value", ["0", "None"])
def test_a_stray_zero_or_none_is_left_to_vllm_and_reported(events: Events, variable: str, value: str) -> None:
    args = build(events, {variable: value})
    assert getattr(args, variable.lower()) is None
    assert [event["setting"] for event in events.named("setting_corrected")] == [variable]


def test_names_that_belong_to_others_are_not_engine_arguments(events: Events) -> None:
    args = build(events, {"HF_TOKEN": "hf_x", "MASTER_ADDR": "10.0.0.1", "NODE_RANK": "3", "LOG_LEVEL": "INFO"})
    assert args.hf_token is None
    assert (args.master_addr, args.node_rank) != ("10.0.0.1", 3)


def test_remote_code_is_off_unless_it_is_asked_for(events: Events) -> None:
    assert build(events).trust_remote_code is False
    assert build(events, trust_remote_code=True).trust_remote_code is True


@pytest.mark.parametrize(
    ("gpus", "heads", "size"),
    [(0, 32, 1), (1, 32, 1), (2, 32, 2), (3, 32, 2), (4, 14, 2), (8, 40, 8), (6, 14, 2), (7, 14, 7)],
)
def test_the_default_is_every_gpu_that_can_share_the_heads(gpus: int, heads: int, size: int) -> None:
    assert tensor_parallel_size(gpus, heads) == size


# What RunPod's form for its own vLLM worker sends when nothing in it is changed (worker-vllm, hub.json, 2026-08).
OFFICIAL_FORM = {
    "TOKENIZER_MODE": "auto",
    "SKIP_TOKENIZER_INIT": "false",
    "TRUST_REMOTE_CODE": "false",
    "DTYPE": "auto",
    "KV_CACHE_DTYPE": "auto",
    "MAX_MODEL_LEN": "auto",
    "DISTRIBUTED_EXECUTOR_BACKEND": "mp",
    "RAY_WORKERS_USE_NSIGHT": "false",
    "PIPELINE_PARALLEL_SIZE": "1",
    "TENSOR_PARALLEL_SIZE": "1",
    "MAX_PARALLEL_LOADING_WORKERS": "1",
    "ENABLE_PREFIX_CACHING": "false",
    "DISABLE_SLIDING_WINDOW": "false",
    "SEED": "0",
    "MAX_NUM_SEQS": "256",
    "MAX_LOGPROBS": "20",
    "DISABLE_LOG_STATS": "false",
    "ENABLE_LORA": "false",
    "MAX_LORAS": "1",
    "MAX_LORA_RANK": "16",
    "LORA_DTYPE": "auto",
    "FULLY_SHARDED_LORAS": "false",
    "DEVICE": "auto",
    "SCHEDULER_DELAY_FACTOR": "0",
    "ENABLE_CHUNKED_PREFILL": "true",
    "SPECULATIVE_METHOD": "",
    "ENABLE_LOG_REQUESTS": "false",
    "GPU_MEMORY_UTILIZATION": "0.95",
    "BLOCK_SIZE": "16",
    "ENFORCE_EAGER": "false",
    "DISABLE_CUSTOM_ALL_REDUCE": "false",
    "DEFAULT_BATCH_SIZE": "50",
    "DEFAULT_MIN_BATCH_SIZE": "1",
    "DEFAULT_BATCH_SIZE_GROWTH_FACTOR": "3",
    "RAW_OPENAI_OUTPUT": "true",
    "OPENAI_RESPONSE_ROLE": "assistant",
    "MAX_CONCURRENCY": "30",
    "ENABLE_EXPERT_PARALLEL": "false",
    "BASE_PATH": "/runpod-volume",
    "ENABLE_AUTO_TOOL_CHOICE": "false",
    "TOOL_CALL_PARSER": "",
    "REASONING_PARSER": "",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "VLLM_USE_DEEP_GEMM": "0",
}


def test_an_endpoint_of_the_official_worker_can_change_over_as_it_is(
    clean_environment: pytest.MonkeyPatch, events: Events
) -> None:
    for name, value in OFFICIAL_FORM.items():
        clean_environment.setenv(name, value)
    environment = load()
    args = engine_arguments.read(environment.settings, environment.others, events.emit).engine
    assert (args.max_num_seqs, args.gpu_memory_utilization, args.seed) == (256, 0.95, 0)
    assert environment.settings.max_concurrency == 30
    ignored = {correction.setting for correction in environment.corrections if correction.reason.startswith("ignored")}
    assert ignored == {name for name in OFFICIAL_FORM if name in RETIRED}
