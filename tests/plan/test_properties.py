"""What holds for every model: more is never less, and what a search finds is the edge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmpod.plan import Model, PlanError, Request, estimate
from llmpod.plan.cache_layers import CacheLayers, Shape, read_shape
from llmpod.plan.estimate import kv_cache_tokens
from llmpod.plan.memory import kv_bytes, need_bytes
from llmpod.plan.weights import Weights

SIZES = st.integers(1, 64)
LAYERS = st.one_of(
    st.builds(CacheLayers, kind=st.just("full"), layers=SIZES, elements=st.integers(2, 512), heads=SIZES),
    st.builds(
        CacheLayers,
        kind=st.sampled_from(["sliding", "chunked"]),
        layers=SIZES,
        elements=st.integers(2, 512),
        heads=SIZES,
        window=st.integers(1, 10_000),
    ),
    st.builds(CacheLayers, kind=st.just("latent"), layers=SIZES, elements=st.integers(2, 600), fixed_bytes=SIZES),
    st.builds(CacheLayers, kind=st.just("state"), layers=SIZES, elements=st.integers(2, 10**6)),
)
CACHES = st.lists(LAYERS, min_size=1, max_size=3).map(tuple)
WEIGHTS = st.builds(
    Weights, stored_bytes=st.just(0), floats=st.integers(1, 10**11), linear=st.just(0), other_bytes=st.just(0)
)


def shape(cache: tuple[CacheLayers, ...]) -> Shape:
    return Shape("Any", "bfloat16", None, 64, 100_000, cache)


@given(CACHES, st.integers(1, 50_000), st.integers(1, 200))
@settings(max_examples=60)
def test_more_requests_and_longer_ones_never_need_less(cache: tuple[CacheLayers, ...], length: int, seqs: int) -> None:
    need = kv_bytes(cache, length, seqs, 2, Request())
    assert kv_bytes(cache, length, seqs + 1, 2, Request()) >= need
    assert kv_bytes(cache, length + 1, seqs, 2, Request()) >= need


@given(CACHES, SIZES, st.integers(1, 50_000), st.integers(1, 16))
@settings(max_examples=60)
def test_more_gpus_never_need_more_on_each(cache: tuple[CacheLayers, ...], heads: int, length: int, gpus: int) -> None:
    """Of layers with the same heads. (A state's share is rounded up to whole blocks, which may differ by one.)"""
    same = tuple(replace(one, heads=heads) for one in cache if one.kind not in ("state", "latent"))
    fewer, more = (kv_bytes(same, length, 3, 2, Request(gpus=number)) for number in (gpus, gpus + 1))
    assert more <= fewer
    assert need_bytes(10**9, more, gpus + 1) <= need_bytes(10**9, fewer, gpus)


@given(CACHES, WEIGHTS, st.integers(1 << 30, 200 << 30), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=60)
def test_the_largest_that_fits_is_the_edge(
    cache: tuple[CacheLayers, ...], weights: Weights, memory: int, gpus: int
) -> None:
    model = Model("any", shape(cache), weights)
    made = estimate(model, memory, Request(gpus=gpus, max_model_len=1000))
    length, seqs = made.largest_max_model_len, made.largest_max_num_seqs
    assert length is not None
    assert seqs is not None
    assert made.fits is (seqs >= 1)
    for changes, fits in (({"max_model_len": length}, True), ({"max_model_len": length + 1}, False)):
        if 0 < changes["max_model_len"] <= 100_000:
            assert estimate(model, memory, Request(gpus=gpus, **changes)).fits is fits
    for count, fits in ((seqs, True), (seqs + 1, False)):
        if 0 < count <= 1024:
            request = Request(gpus=gpus, max_model_len=1000, max_num_seqs=count)
            assert estimate(model, memory, request).fits is fits
    if made.smallest_gpus is not None:
        assert estimate(model, memory, Request(gpus=made.smallest_gpus, max_model_len=1000)).fits is True


@given(CACHES, st.integers(0, 1 << 36))
@settings(max_examples=60)
def test_the_tokens_that_a_cache_holds_fit_into_it(cache: tuple[CacheLayers, ...], size: int) -> None:
    model = Model("any", shape(cache), None, "not read")
    tokens = kv_cache_tokens(model, size)
    if tokens is not None and tokens > 0:
        assert kv_bytes(cache, tokens, 1, 2, Request()) <= size


KEYS = st.sampled_from(
    ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim", "sliding_window",
     "layer_types", "kv_lora_rank", "qk_rope_head_dim", "max_position_embeddings", "dtype", "quantization_config",
     "text_config", "architectures", "model_type", "index_topk", "linear_num_key_heads", "num_kv_shared_layers"]
)  # fmt: skip
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just(10**400))
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(KEYS, PLAIN, max_size=4)


@given(st.dictionaries(KEYS, VALUES, max_size=10), st.booleans())
def test_a_hostile_config_is_an_estimate_or_one_line(config: dict[str, Any], complete: bool) -> None:
    try:
        made = read_shape(config, complete=complete)
        estimate(Model("any", made, Weights(1, 1, 0, 0)), 1 << 34)
    except PlanError as error:
        assert "\n" not in str(error)
        assert len(str(error)) <= 500
