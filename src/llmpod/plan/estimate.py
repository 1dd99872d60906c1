"""The estimate: does a model fit into a GPU's memory, how long and how many requests may be, on how many GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmpod.plan.cache_layers import CacheLayers
from llmpod.plan.errors import UsageError
from llmpod.plan.gpus import POOLS, pool_bytes
from llmpod.plan.memory import Request, cache_element_bytes, kv_bytes, largest, need_bytes, weight_bytes
from llmpod.plan.source import Model

MOST_SEQS = 1024
"""The most requests that vLLM decodes together by default, on its largest GPUs."""
TENSOR_PARALLEL = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Placement:
    """A GPU type and how many of its GPUs hold the model."""

    pool: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs and what fits. Sizes in bytes; per GPU where the name says so.

    fits: None where it cannot be told, with `unknown` saying why. max_model_len: the length that was asked for, or the
    model's. kv_bytes_per_token: of one more token of one request, before a window is full, without what several GPUs
    hold twice. largest_max_model_len: with max_num_seqs requests of that length. largest_max_num_seqs: requests of
    max_model_len that are held at once. smallest_gpus: None where eight are too few. placements: GPU types that hold
    it, each with the fewest GPUs, smallest GPU first.
    """

    model: str
    architecture: str
    gpus: int
    memory_bytes_per_gpu: int
    utilization: float
    weights_bytes: int | None
    kv_bytes_per_token: int | None
    max_model_len: int | None
    max_num_seqs: int
    kv_bytes_per_gpu: int | None
    need_bytes_per_gpu: int | None
    fits: bool | None
    largest_max_model_len: int | None
    largest_max_num_seqs: int | None
    smallest_gpus: int | None
    placements: tuple[Placement, ...]
    settings: dict[str, str]
    unknown: tuple[str, ...]


def estimate(model: Model, memory_bytes: int, request: Request | None = None) -> Estimate:
    """The estimate for GPUs of `memory_bytes` each. Pure: it reads nothing.

    Raises:
        PlanError: the data type or the quantisation that was asked for is none, or does not suit the model.
    """
    request = request or Request()
    heads = model.shape.attention_heads
    if heads % request.gpus:
        raise UsageError(f"{heads} attention heads cannot be shared evenly by {request.gpus} GPUs.")
    unknown = _unknown(model, request)
    length = request.max_model_len or model.shape.longest
    weights = weight_bytes(model.weights, model, request) if model.weights is not None else None
    size = cache_element_bytes(model, request)
    cache = model.shape.cache
    kv = token = need = longest = seqs = smallest = None
    placements: list[Placement] = []
    if cache is not None:
        token = sum(one.layers * (one.heads * one.elements * size + one.fixed_bytes) for one in _tokens(model))
        kv = kv_bytes(cache, length, request.max_num_seqs, size, request) if length else None
    if weights is not None and length is not None and cache is not None:
        sizes = _Sizes(model, cache, weights, size, memory_bytes)
        need = sizes.need(request, length, request.max_num_seqs)
        limit = max(length, model.shape.longest or 0)
        longest = largest(lambda tokens: sizes.fits(request, tokens, request.max_num_seqs), limit)
        seqs = largest(lambda number: sizes.fits(request, length, number), MOST_SEQS)
        smallest = sizes.smallest(request, length)
        fewest = ((pool, replace(sizes, memory=pool_bytes(pool)).smallest(request, length)) for pool in POOLS)
        placements = [Placement(pool, gpus) for pool, gpus in fewest if gpus is not None]
    out = Estimate(
        model=model.name,
        architecture=model.shape.architecture,
        gpus=request.gpus,
        memory_bytes_per_gpu=memory_bytes,
        utilization=request.utilization,
        weights_bytes=weights,
        kv_bytes_per_token=token,
        max_model_len=length,
        max_num_seqs=request.max_num_seqs,
        kv_bytes_per_gpu=kv,
        need_bytes_per_gpu=need,
        fits=None if need is None else need <= request.utilization * memory_bytes,
        largest_max_model_len=longest,
        largest_max_num_seqs=seqs,
        smallest_gpus=smallest,
        placements=tuple(placements),
        settings={},
        unknown=unknown,
    )
    return replace(out, settings=_settings(out, request))


def kv_cache_tokens(model: Model, cache_bytes: int, request: Request | None = None) -> int | None:
    """Tokens that a KV cache of so many bytes on each GPU holds, in whole blocks; None where it cannot be told.

    It compares with what vLLM reports after the start, for models that have layers of one kind.
    """
    request = request or Request()
    size = cache_element_bytes(model, request)
    if model.shape.cache is None or not any(one.window is None for one in _tokens(model)):
        return None
    cache = model.shape.cache
    blocks = largest(lambda count: kv_bytes(cache, count * request.block, 1, size, request) <= cache_bytes, 1 << 40)
    return blocks * request.block


@dataclass(frozen=True, slots=True)
class _Sizes:
    """A model whose weights and layers are known, on GPUs of a memory."""

    model: Model
    cache: tuple[CacheLayers, ...]
    weights: int
    element: int
    memory: int

    def need(self, request: Request, length: int, seqs: int) -> int:
        return need_bytes(self.weights, kv_bytes(self.cache, length, seqs, self.element, request), request.gpus)

    def fits(self, request: Request, length: int, seqs: int) -> bool:
        return self.need(request, length, seqs) <= request.utilization * self.memory

    def smallest(self, request: Request, length: int) -> int | None:
        """The fewest GPUs, of a number that divides the attention heads."""
        heads = self.model.shape.attention_heads
        sizes = [number for number in TENSOR_PARALLEL if heads % number == 0]
        fitting = (n for n in sizes if self.fits(replace(request, gpus=n), length, request.max_num_seqs))
        return next(fitting, None)


def _tokens(model: Model) -> list[CacheLayers]:
    """The layers that keep something of every token."""
    return [one for one in model.shape.cache or () if one.kind != "state"]


def _unknown(model: Model, request: Request) -> tuple[str, ...]:
    out = []
    if model.weights is None:
        out.append(f"weights: {model.weights_unknown}")
    if model.shape.cache is None:
        out.append(f"KV cache: {model.shape.unknown}")
    if request.max_model_len is None and model.shape.longest is None:
        out.append("length: config.json does not say how long a request may be; give --max-model-len")
    return tuple(out)


def _settings(made: Estimate, request: Request) -> dict[str, str]:
    """The worker's settings for what fits; {} where nothing does or it cannot be told."""
    if made.fits is None or made.max_model_len is None or not made.largest_max_model_len:
        return {}
    length = min(made.max_model_len, made.largest_max_model_len)
    seqs = (made.largest_max_num_seqs or 0) if made.fits else request.max_num_seqs
    optional = {"QUANTIZATION": request.quantization, "DTYPE": request.dtype, "KV_CACHE_DTYPE": request.kv_cache_dtype}
    return {
        "MODEL_NAME": made.model,
        "MAX_MODEL_LEN": str(length),
        "MAX_NUM_SEQS": str(max(1, min(256, max(seqs, request.max_num_seqs)))),
        "TENSOR_PARALLEL_SIZE": str(request.gpus),
        "GPU_MEMORY_UTILIZATION": f"{request.utilization:g}",
        **{name: value for name, value in optional.items() if value not in (None, "auto")},
    }
