"""Memory arithmetic: what a number of requests of a length keep on each GPU, and what a GPU needs in all.

need per GPU = (weights / GPUs + KV cache per GPU) · 1.1 + 1 GiB; it fits where that is at most `utilization` of the
GPU's memory. The factor and the GiB stand for activations, CUDA graphs and what the driver keeps.

`kv_bytes` of one request is what vLLM's allocator takes for it (tests/worker/engine/test_plan_against_vllm.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llmpod.plan.cache_layers import CacheLayers
from llmpod.plan.errors import PlanError
from llmpod.plan.source import Model
from llmpod.plan.weights import Weights

BLOCK = 16
"""Tokens of a block of the KV cache on a GPU (vLLM's default)."""
OVERHEAD_FACTOR = 1.1
OVERHEAD_BYTES = 1 << 30
IN_FLIGHT = 2 * 2048
"""Tokens that are computed but not yet settled: vLLM's default batch, twice, since it schedules one ahead."""
ELEMENT_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "float64": 8}
QUANTIZED_WHILE_LOADING = {"fp8": 1.0, "fp8_per_tensor": 1.0, "fp8_per_block": 1.0}
"""Bytes per element of the linear layers, for methods that vLLM applies to a model that is not quantised."""


@dataclass(frozen=True, slots=True)
class Request:
    """How a model is to be served.

    max_model_len: None: as long as the model was made for. max_num_seqs: requests of that length that are held at once
    without one being preempted. dtype, kv_cache_dtype: as vLLM's; auto makes a float32 model bfloat16, as on a GPU.
    block: tokens per block of the cache.
    """

    gpus: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 1
    utilization: float = 0.9
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    block: int = BLOCK
    in_flight: int = IN_FLIGHT


def element_bytes(model: Model, request: Request) -> int:
    """Bytes of a weight or activation in the model's data type.

    Raises:
        PlanError: there is no such type.
    """
    name = request.dtype if request.dtype != "auto" else model.shape.dtype or "bfloat16"
    if name not in ELEMENT_BYTES:
        raise PlanError(f"{name} is no data type: use {', '.join(ELEMENT_BYTES)}.")
    return min(2, ELEMENT_BYTES[name]) if request.dtype == "auto" else ELEMENT_BYTES[name]


def cache_element_bytes(model: Model, request: Request) -> int:
    """Bytes of an element of the KV cache.

    Raises:
        PlanError: there is no such type.
    """
    name = request.kv_cache_dtype
    if name == "auto":
        return element_bytes(model, request)
    if name.startswith("fp8"):
        return 1
    if name not in ELEMENT_BYTES:
        raise PlanError(f"{name} is no data type of a KV cache: use auto, fp8, {', '.join(ELEMENT_BYTES)}.")
    return ELEMENT_BYTES[name]


def weight_bytes(weights: Weights, model: Model, request: Request) -> int:
    """Bytes of the weights once they are loaded, on all GPUs together.

    Raises:
        PlanError: the checkpoint is not quantised in the way that was asked for, and vLLM does not do it on loading.
    """
    size = element_bytes(model, request)
    has, wanted = model.shape.quantization, request.quantization
    if has is not None and (wanted is None or wanted == has or wanted.startswith(has)):
        return weights.stored_bytes
    if wanted is None:
        return weights.floats * size + weights.other_bytes
    if has is None and wanted in QUANTIZED_WHILE_LOADING:
        small = math.ceil(weights.linear * QUANTIZED_WHILE_LOADING[wanted])
        return (weights.floats - weights.linear) * size + small + weights.other_bytes
    is_so = f"quantised with {has}" if has else "not quantised"
    raise PlanError(
        f"{model.name} is {is_so}, and {wanted} is not applied on loading: "
        f"leave it out, or use {', '.join(QUANTIZED_WHILE_LOADING)} with a model that is not quantised."
    )


def kv_bytes(layers: tuple[CacheLayers, ...], length: int, seqs: int, size: int, request: Request) -> int:
    """Bytes of the KV cache that `seqs` requests of `length` tokens take on each GPU.

    vLLM gives all blocks one size: that of the widest layer's, and at least that of a state. Layers of less per token
    have more tokens in a block, where it comes out even. Layers of several kinds are allocated in groups of one number
    of layers, padded where that does not come out even.
    """
    if not layers or not seqs:
        return 0
    pages = [_token_bytes(one, size, request.gpus) for one in layers if one.kind != "state"]
    states = [_state_bytes(one, size, request.gpus) for one in layers if one.kind == "state"]
    if not pages:
        return seqs * sum(one.layers * state for one, state in zip(layers, states, strict=True))
    widest = max(pages)
    block = max(request.block, _up(math.ceil(max(states, default=0) / widest), request.block))
    group = _group_size(layers)
    out = 0
    for one in layers:
        if one.kind == "state":
            blocks = 2 * seqs  # the running state, and one that the prefix cache keeps
        else:
            own = _token_bytes(one, size, request.gpus)
            tokens = block * (widest // own) if widest % own == 0 else block
            blocks = _blocks(one, length, seqs, tokens, request.in_flight)
        out += _up(one.layers, group) * blocks * widest * block
    return out


def _blocks(one: CacheLayers, length: int, seqs: int, block: int, in_flight: int) -> int:
    """Blocks that requests fill in one layer. A window's start may lie anywhere in a block, hence one more."""
    if one.window is None:
        return seqs * math.ceil(length / block)
    if one.kind == "chunked":
        tokens = min(seqs * one.window + in_flight, seqs * length)
        return math.ceil(tokens / block) + seqs - 1
    tokens = min(seqs * (one.window - 1) + in_flight, seqs * length)
    return math.ceil(tokens / block) + seqs


def _group_size(layers: tuple[CacheLayers, ...]) -> int:
    """Layers of a group of vLLM's allocator, where there are layers of several kinds: the fewest of a kind, or the most
    where that is less than half as many again."""
    numbers = [one.layers for one in layers]
    if len(numbers) == 1:
        return 1
    return max(numbers) if max(numbers) < 1.5 * min(numbers) else min(numbers)


def _token_bytes(one: CacheLayers, size: int, gpus: int) -> int:
    """Bytes of a token in one layer on each GPU. Heads that cannot be shared out are held by several GPUs."""
    return math.ceil(one.heads / gpus) * one.elements * size + one.fixed_bytes


def _state_bytes(one: CacheLayers, size: int, gpus: int) -> int:
    return math.ceil((one.elements * size + one.fixed_bytes) / gpus)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def need_bytes(weights: int, kv: int, gpus: int) -> int:
    """Bytes that each GPU needs; `kv` is already per GPU."""
    return math.ceil((weights / gpus + kv) * OVERHEAD_FACTOR) + OVERHEAD_BYTES


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to limit that fits, where smaller ones fit too; 0: none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
