"""Known models: their figures, computed by hand from their config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmpod.plan import Model, Request, estimate
from llmpod.plan.estimate import Estimate
from llmpod.plan.memory import kv_bytes
from llmpod.plan.source import describe
from llmpod.plan.weights import Weights

DATA = Path(__file__).parent / "data"
GIB = 1 << 30


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return loaded


def model(name: str, parameters: int = 0) -> Model:
    """A model with so many parameters of two bytes, nine in ten of them in linear layers."""
    return Model(name, describe(config(name)), Weights(2 * parameters, parameters, parameters * 9 // 10, 0))


def kv(name: str, length: int, seqs: int = 1, gpus: int = 1, **changes: Any) -> int:
    """Bytes of the cache per GPU with elements of two bytes."""
    layers = describe(config(name)).cache
    assert layers is not None
    return kv_bytes(layers, length, seqs, 2, Request(gpus=gpus, **changes))


@pytest.mark.parametrize(
    ("name", "per_token", "longest"),
    [
        ("qwen2.5-7b", 28 * 2 * 4 * 128 * 2, 32_768),
        ("llama-3.1-8b", 32 * 2 * 8 * 128 * 2, 131_072),
        ("mixtral-8x7b", 32 * 2 * 8 * 128 * 2, 32_768),
        ("gemma-3-4b", 34 * 2 * 4 * 256 * 2, 131_072),  # its config.json names neither heads nor their size
        ("deepseek-v2-lite", 27 * (512 + 64) * 2, 163_840),
        ("qwen3-next-80b", 12 * 2 * 2 * 256 * 2, 262_144),
    ],
)
def test_bytes_of_a_token(name: str, per_token: int, longest: int) -> None:
    made = estimate(model(name), 80 * GIB)
    assert (made.kv_bytes_per_token, made.max_model_len) == (per_token, longest)


def test_full_attention_keeps_every_token_in_whole_blocks() -> None:
    assert kv("llama-3.1-8b", 131_072) == 16 * GIB
    assert kv("llama-3.1-8b", 1000) == 131_072 * 1008
    assert kv("qwen2.5-7b", 32_768, seqs=3) == 3 * 57_344 * 32_768


def test_a_sliding_window_keeps_the_window_and_what_is_in_flight() -> None:
    """Of Gemma 3's 34 layers every sixth looks at all tokens. vLLM allocates in groups of 5, so the 29 count as 30."""
    full = 5 * 4096 * 32_768
    sliding = 30 * 4096 * ((1023 + 4096) // 16 + 1 + 1) * 16
    assert kv("gemma-3-4b", 32_768) == full + sliding
    assert kv("gemma-3-4b", 131_072) - kv("gemma-3-4b", 32_768) == 5 * 4096 * (131_072 - 32_768)


def test_a_latent_is_held_by_every_gpu_and_heads_are_shared_out() -> None:
    assert kv("deepseek-v2-lite", 4096, gpus=8) == kv("deepseek-v2-lite", 4096) == 27 * 576 * 2 * 4096
    assert kv("llama-3.1-8b", 4096, gpus=8) * 8 == kv("llama-3.1-8b", 4096)
    assert kv("llama-3.1-8b", 4096, gpus=16) == kv("llama-3.1-8b", 4096, gpus=8)  # 8 heads cannot be shared by more
    assert kv("qwen2.5-7b", 4096, gpus=7) == kv("qwen2.5-7b", 4096, gpus=4)


def test_linear_attention_keeps_a_state_that_does_not_grow() -> None:
    """36 layers: 3 last inputs of a convolution over 8192 channels, and 32 matrices of 128 · 128, in two bytes each."""
    state = ((2 * 128 * 16 + 128 * 32) * 3 + 32 * 128 * 128) * 2
    block = -(-state // 2048 // 16) * 16  # tokens of the blocks, which are as large as a state
    assert kv("qwen3-next-80b", 100 * block) == (12 * 100 + 36 * 2) * 2048 * block
    assert kv("qwen3-next-80b", 101 * block) - kv("qwen3-next-80b", 100 * block) == 12 * 2048 * block


def test_quarter_size_caches_and_quantised_weights() -> None:
    llama = model("llama-3.1-8b", 8_030_261_248)

    def made(**changes: Any) -> Estimate:
        return estimate(llama, 80 * GIB, Request(max_model_len=8192, **changes))

    assert made().weights_bytes == 16_060_522_496
    assert made(kv_cache_dtype="fp8").kv_bytes_per_token == 131_072 // 2
    assert made(dtype="float32").weights_bytes == 2 * 16_060_522_496
    small = made(quantization="fp8")
    linear = 8_030_261_248 * 9 // 10
    assert small.weights_bytes == (8_030_261_248 - linear) * 2 + linear
    assert small.settings["QUANTIZATION"] == "fp8"


def test_does_a_7b_model_fit_into_24_gib() -> None:
    """15.2 GB of weights and 1.75 GiB for one request of 32,768 tokens: 1.1 times both and 1 GiB are 18.5 GiB."""
    qwen = model("qwen2.5-7b", 7_615_616_512)
    made = estimate(qwen, 24 * GIB)
    need = int((15_231_233_024 + 32_768 * 57_344) * 1.1) + GIB
    assert made.need_bytes_per_gpu == pytest.approx(need, abs=1)
    assert made.fits is True
    assert made.largest_max_model_len == 32_768
    assert made.largest_max_num_seqs == int(((0.9 * 24 - 1) * GIB / 1.1 - 15_231_233_024) // (32_768 * 57_344))
    assert made.settings == {
        "MODEL_NAME": "qwen2.5-7b",
        "MAX_MODEL_LEN": "32768",
        "MAX_NUM_SEQS": str(made.largest_max_num_seqs),
        "TENSOR_PARALLEL_SIZE": "1",
        "GPU_MEMORY_UTILIZATION": "0.9",
    }
    assert [one.pool for one in made.placements if one.gpus == 1][:2] == ["ADA_24", "ADA_32_PRO"]


def test_what_does_not_fit_says_how_long_requests_may_be_and_how_many_gpus_hold_it() -> None:
    llama = model("llama-3.1-8b", 8_030_261_248)
    made = estimate(llama, 24 * GIB)
    assert made.fits is False
    assert made.smallest_gpus == 2
    longest = made.largest_max_model_len
    assert longest is not None
    assert estimate(llama, 24 * GIB, Request(max_model_len=longest)).fits is True
    assert estimate(llama, 24 * GIB, Request(max_model_len=longest + 16)).fits is False
    assert made.settings["MAX_MODEL_LEN"] == str(longest)
    mixtral = estimate(model("mixtral-8x7b", 46_702_792_704), 80 * GIB)
    assert (mixtral.fits, mixtral.largest_max_model_len, mixtral.settings, mixtral.smallest_gpus) == (False, 0, {}, 2)


def test_layers_that_are_not_known_leave_the_weights_alone_and_say_so() -> None:
    made = estimate(model("nemotron-h-8b", 8_100_000_000), 24 * GIB)
    assert made.weights_bytes == 16_200_000_000
    assert (made.fits, made.kv_bytes_per_token, made.settings) == (None, None, {})
    assert "KV cache: " in made.unknown[0]


def test_encoders_keep_nothing() -> None:
    bert = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    made = estimate(replace(model("qwen2.5-7b", 110_000_000), shape=describe(bert)), GIB * 4)
    assert (made.kv_bytes_per_token, made.fits, made.largest_max_num_seqs) == (0, True, 1024)


def test_a_quantisation_that_does_not_suit_the_model_is_refused() -> None:
    from llmpod.plan import PlanError

    llama = model("llama-3.1-8b", 1000)
    with pytest.raises(PlanError, match="not quantised, and awq is not applied"):
        estimate(llama, GIB, Request(quantization="awq"))
    quantised = replace(llama, shape=replace(llama.shape, quantization="awq"))
    assert estimate(quantised, 80 * GIB, Request(quantization="awq_marlin")).weights_bytes == 2000
    with pytest.raises(PlanError, match="quantised with awq"):
        estimate(quantised, GIB, Request(quantization="fp8"))
