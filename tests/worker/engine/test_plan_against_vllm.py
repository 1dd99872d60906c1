"""llmpod.plan's arithmetic against vLLM's own: its readings of a config, its KVCacheSpec classes, and a real start."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from llmpod.plan import Request, read_model
from llmpod.plan.cache_layers import read_shape
from llmpod.plan.estimate import kv_cache_tokens
from llmpod.plan.memory import kv_bytes
from llmpod.plan.source import describe
from llmpod.worker.engine.engine import Engine
from llmpod.worker.settings import DEMO_MODEL

DATA = Path(__file__).parents[2] / "plan" / "data"
CPU_BLOCK = 128
"""Tokens of a block in vLLM's CPU build."""

TINY: dict[str, dict[str, Any]] = {
    "full": {"model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 6, "hidden_size": 96},
    "grouped": {
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "head_dim": 32,
    },
    "window": {
        "model_type": "mistral",
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "sliding_window": 48,
        "head_dim": 16,
    },
    "some windows": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 14,
        "hidden_size": 64,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "sliding_window": 80,
    },
    "head sizes that differ": {
        "model_type": "gemma4_text",
        "num_hidden_layers": 12,
        "hidden_size": 64,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 80,
    },
    "half windows": {"model_type": "gpt_oss", "num_hidden_layers": 6, "sliding_window": 128},
    "latent": {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 4,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "num_attention_heads": 4,
        "hidden_size": 64,
    },
    "linear": {"model_type": "qwen3_next", "num_hidden_layers": 8, "num_key_value_heads": 2, "head_dim": 64},
}
FIXTURES = {path.stem: json.loads(path.read_text()) for path in DATA.glob("*.json") if "nemotron" not in path.name}
CONFIGS = TINY | FIXTURES


def specs(config: dict[str, Any], block: int) -> dict[str, KVCacheSpec]:
    """The cache of each layer as vLLM would have it, from its own readings of the config."""
    hf = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    text = hf.get_text_config()
    kind = MODEL_ARCH_CONFIG_CONVERTORS.get(text.model_type, ModelArchConfigConvertorBase)
    whole = kind(hf, text)
    every = [kind(*pair) for pair in whole.get_per_layer_hf_configs() or [(hf, text)] * whole.get_num_hidden_layers()]
    types = getattr(text, "layer_types", None) or ["full_attention"] * len(every)
    if text.model_type == "mistral":
        types = ["sliding_attention"] * len(every)
    state = gated_delta_spec(text, block, every[0]) if "linear_attention" in types else None
    if state is not None:
        block = state[1]
    out: dict[str, KVCacheSpec] = {}
    for number, (name, layer) in enumerate(zip(types, every, strict=True)):
        common: dict[str, Any] = {"block_size": block, "head_size": layer.get_head_size(), "dtype": torch.bfloat16}
        heads = layer.get_total_num_kv_heads()
        if name == "sliding_attention":
            spec: KVCacheSpec = SlidingWindowSpec(
                num_kv_heads=heads, sliding_window=text.sliding_window, dcp_sharded=False, **common
            )
        elif name == "linear_attention":
            assert state is not None
            spec = state[0]
        elif whole.is_deepseek_mla():
            spec = MLAAttentionSpec(num_kv_heads=1, **common)
        else:
            spec = FullAttentionSpec(num_kv_heads=heads, **common)
        out[f"layers.{number}"] = spec
    return out


def gated_delta_spec(text: Any, block: int, layer: ModelArchConfigConvertorBase) -> tuple[MambaSpec, int]:
    """The state of a layer, and the tokens of an attention block that is as large."""
    shapes = MambaStateShapeCalculator.gated_delta_net_state_shape(
        1,
        text.linear_num_key_heads,
        text.linear_num_value_heads,
        text.linear_key_head_dim,
        text.linear_value_head_dim,
        text.linear_conv_kernel_dim,
    )
    made = partial(MambaSpec, block_size=1 << 20, shapes=shapes, dtypes=(torch.bfloat16, torch.bfloat16))
    per_token = FullAttentionSpec(
        block_size=1, num_kv_heads=layer.get_total_num_kv_heads(), head_size=layer.get_head_size(), dtype=torch.bfloat16
    ).page_size_bytes
    tokens = max(block, -(-made().page_size_bytes // (block * per_token)) * block)
    return made(page_size_padded=per_token * tokens), tokens


def vllm_bytes(config: dict[str, Any], length: int, request: Request) -> int:
    """Bytes that vLLM's allocator takes for one request of that length."""
    stub: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=length),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        cache_config=SimpleNamespace(
            mamba_cache_mode="align",
            get_resolved_kv_cache_layout=lambda: SimpleNamespace(is_block_outermost=False),
        ),
        max_in_flight_tokens=request.in_flight,
    )
    layers = specs(config, request.block)
    if kv_cache_utils.is_kv_cache_spec_uniform(layers):
        groups = kv_cache_utils._get_kv_cache_groups_uniform_spec(layers)
    else:
        layers = kv_cache_utils.unify_kv_cache_spec_page_size(layers)
        groups = kv_cache_utils._get_kv_cache_groups_uniform_page_size(layers)
    return kv_cache_utils._max_memory_usage_bytes_from_groups(stub, groups)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("length", "in_flight"), [(1, 64), (100, 64), (777, 256), (4096, 4096), (30_000, 2048)])
def test_one_request_takes_what_vllm_says(name: str, length: int, in_flight: int) -> None:
    request = Request(in_flight=in_flight)
    layers = describe(CONFIGS[name]).cache
    assert layers is not None
    assert kv_bytes(layers, length, 1, 2, request) == vllm_bytes(CONFIGS[name], length, request)


def test_the_demonstration_model_has_as_many_tokens_per_gib_as_a_real_start_says(engine: Engine) -> None:
    """The session's engine has a cache of 1 GiB."""
    request = Request(dtype="float32", block=CPU_BLOCK)
    tokens = kv_cache_tokens(read_model(DEMO_MODEL), 1 << 30, request)
    assert tokens is not None
    assert engine.kv_cache_tokens is not None
    assert abs(tokens - engine.kv_cache_tokens) <= CPU_BLOCK


@pytest.mark.parametrize(
    ("types", "kinds"),
    [
        ("llama qwen2 qwen3 qwen3_moe mixtral phi3 falcon gpt2 gpt_neox opt granite stablelm glm4 minicpm3", "full"),
        ("mistral", "sliding"),
        ("gemma2 gemma3_text gemma3n_text gpt_oss cohere2 olmo3 exaone4", "full sliding"),
        ("llama4_text", "chunked full"),
        ("deepseek_v2 deepseek_v3 deepseek_v32", "latent"),
        ("qwen3_next qwen3_5_text", "full state"),
        ("bert xlm-roberta modernbert", ""),
        (
            "mamba mamba2 falcon_h1 jamba bamba granitemoehybrid minimax nemotron_h mpt whisper t5 deepseek_v4",
            "unknown",
        ),
    ],
)
def test_the_kinds_of_layers_of_model_types_by_the_defaults_of_their_classes(types: str, kinds: str) -> None:
    for name in types.split():
        shape = read_shape(CONFIG_MAPPING[name]().to_dict(), complete=True)
        found = "unknown" if shape.cache is None else " ".join(sorted(one.kind for one in shape.cache))
        assert (name, found) == (name, kinds)
