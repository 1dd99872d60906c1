"""Layers of a model by what each keeps of a request: keys and values of all tokens, of a window, a latent, a state.

Read from config.json with the aliases and rules that vLLM itself goes by (its model_arch_config_convertor and
kv_cache_interface). A config whose layers are of a kind that is not known here gives None, never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmpod.plan.errors import PlanError

Kind = Literal["full", "sliding", "chunked", "latent", "state"]

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEAD_DIM = ("head_dim", "hidden_size_per_head", "attention_head_dim", "kv_channels")
LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
LARGEST = 10**9
MOST_LAYERS = 10_000

# Keys that announce layers that keep something else than keys and values. A layer list that names each layer's kind
# (layer_types) is believed instead.
OTHER_LAYERS = re.compile(
    r"mamba|ssm|rwkv|linear_attn|lightning|hyena|^d_conv$|^state_size$|^conv_kernel|^attn_layer_|^layers_block_type$"
    r"|^hybrid_|^block_configs$|^block_types$|^attn_type_list$|^compress_ratios$|^recurrent|^lru_|^attn_config$"
)
ENCODERS = re.compile(r"bert|roberta|^gte$|^nomic|^mpnet$|^electra$|^clip|^siglip")
"""Model types whose attention looks at a whole text at once: they keep nothing between steps."""
FULL = ("full_attention", "attention", "indexed_attention")
ATTENTIONS_PER_LAYER = {"longcat_flash": 2}
INDEX_BYTES = 132
"""Bytes per token that a sparse-attention layer's indexer keeps: 128 of 8 bits, and a scale of 32 bits."""


class VariesError(Exception):
    """A value differs from layer to layer: there is a list, or an object, where a number is expected."""


@dataclass(frozen=True, slots=True)
class CacheLayers:
    """Layers of one kind.

    elements: per token and KV head (keys and values together), in the cache's data type; of a state, per request.
    heads: KV heads, which tensor parallelism shares out; a latent has one, which every GPU holds.
    window: tokens a sliding or chunked layer looks back; None: all.
    fixed_bytes: per token, whatever the data type; of a state, per request.
    """

    kind: Kind
    layers: int
    elements: int
    heads: int = 1
    window: int | None = None
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """What an estimate needs of a config. `cache`: None where the kinds of layers are not known, with `unknown` saying
    why; () for a model that keeps nothing between steps."""

    architecture: str
    dtype: str | None
    quantization: str | None
    attention_heads: int
    longest: int | None
    cache: tuple[CacheLayers, ...] | None
    unknown: str | None = None
    tied: bool = False


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    for name in ("text_config", "language_config", "llm_config", "thinker_config"):
        inner = config.get(name)
        if isinstance(inner, Mapping):
            return text_config(inner)
    return config


def read_shape(config: Mapping[str, Any], *, complete: bool) -> Shape:
    """The shape of a config. `complete`: keys that config.json leaves out hold their defaults, so that an absent window
    means that there is none.

    Raises:
        PlanError: a value is not what its key says: text for a number, a number out of range, a list that is none.
    """
    text = text_config(config)
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and architectures and isinstance(architectures[0], str)
    model_type = str(text.get("model_type", ""))
    try:
        cache, unknown = _cache(text, model_type, config, complete=complete)
        heads = whole(text, HEADS, at_least=0) or 0
        longest = _longest(text)
    except VariesError as varies:
        cache, unknown, heads, longest = None, str(varies), 0, None
    return Shape(
        architecture=str(architectures[0]) if named and isinstance(architectures, list) else model_type or "unknown",
        dtype=_dtype(config) or _dtype(text),
        quantization=_quantization(config) or _quantization(text),
        attention_heads=heads,
        longest=longest,
        cache=cache,
        unknown=unknown,
        tied=config.get("tie_word_embeddings") is True,
    )


def whole(config: Mapping[str, Any], names: tuple[str, ...], *, at_least: int = 1) -> int | None:
    """The first of the keys that is there, as a whole number.

    Raises:
        PlanError: it is no whole number of at_least to LARGEST.
        VariesError: it is a list or an object.
    """
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, list | Mapping):
            raise VariesError(f"{name} differs from layer to layer")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise PlanError(f"config.json: {name} is no whole number but {_shown(value)}.")
        if not at_least <= value <= LARGEST:
            raise PlanError(f"config.json: {name} is {_shown(value)}, not between {at_least} and {LARGEST}.")
        return value
    return None


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _cache(
    text: Mapping[str, Any], model_type: str, config: Mapping[str, Any], *, complete: bool
) -> tuple[tuple[CacheLayers, ...] | None, str | None]:
    if config.get("is_encoder_decoder") is True:
        return None, "it is an encoder and a decoder, whose cross-attention is not estimated"
    if ENCODERS.search(model_type) and text.get("is_decoder") is not True:
        return (), None
    layers = whole(text, LAYERS)
    if layers is None:
        return None, f"config.json has none of {', '.join(LAYERS)}"
    if layers > MOST_LAYERS:
        raise PlanError(f"config.json: {layers} layers are more than any model has.")
    names = _layer_names(text, layers)
    if names is None:
        strange = next((key for key, value in text.items() if OTHER_LAYERS.search(key) and value), None)
        if strange is not None:
            return None, f"layers of another kind ({strange} in config.json)"
        names = ["full_attention"] * layers
        window = text.get("sliding_window")
        if complete and window is not None and text.get("use_sliding_window") is not False:
            names = ["sliding_attention"] * layers
    shared = whole(text, ("num_kv_shared_layers",), at_least=0) or 0
    kinds: Counter[tuple[str, str]] = Counter()
    own = {}
    for number, name in enumerate(names[: max(0, layers - shared)]):
        differs = _differences(text, number)
        kinds[name, repr(differs)] += ATTENTIONS_PER_LAYER.get(model_type, 1)
        own[name, repr(differs)] = differs
    counts: Counter[CacheLayers] = Counter()
    for kind, number in kinds.items():
        made = _layer(kind[0], {**text, **own[kind]})
        if isinstance(made, str):
            return None, made
        counts[made] += number
    return tuple(replace(made, layers=number) for made, number in counts.items()), None


def _differences(text: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """In what a layer differs from the others: transformers writes it into per_layer_config."""
    every = text.get("per_layer_config")
    own = every.get(f"{number:02}") or every.get(str(number)) if isinstance(every, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def _layer_names(text: Mapping[str, Any], layers: int) -> list[str] | None:
    names = text.get("layer_types")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PlanError(f"config.json: layer_types is no list of names but {_shown(names)}.")
    if len(names) != layers:
        raise PlanError(f"config.json: layer_types names {len(names)} layers, and there are {layers}.")
    return names


def _layer(name: str, text: Mapping[str, Any]) -> CacheLayers | str:
    """One layer by its name in layer_types, or why it cannot be told."""
    if name == "linear_attention":
        return _gated_delta(text)
    if name == "conv":
        hidden, kernel = whole(text, HIDDEN), whole(text, ("conv_L_cache",))
        return CacheLayers("state", 1, hidden * (kernel - 1)) if hidden and kernel else "a convolution of no size"
    latent, rope = whole(text, ("kv_lora_rank",), at_least=0), whole(text, ("qk_rope_head_dim",), at_least=0)
    if name in FULL and latent and rope and text.get("model_type") != "minicpm3":
        indexed = whole(text, ("index_topk",), at_least=0) and whole(text, ("index_head_dim",), at_least=0)
        return CacheLayers("latent", 1, latent + rope, fixed_bytes=INDEX_BYTES if indexed else 0)
    window = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}.get(name)
    if window is None and (name not in FULL or name == "indexed_attention"):
        return f"layers of the kind {name}"
    heads, size = _heads(text), _head_dim(text)
    if heads is None or size is None:
        return f"config.json has none of {', '.join(HEADS if heads is None else HEAD_DIM)}"
    if window is None:
        return CacheLayers("full", 1, 2 * size, heads)
    length = whole(text, (window,))
    kind: Kind = "full" if length is None else "sliding" if window == "sliding_window" else "chunked"
    return CacheLayers(kind, 1, 2 * size, heads, length)


def _heads(text: Mapping[str, Any]) -> int | None:
    if text.get("multi_query") is True and text.get("new_decoder_architecture") is not True:
        return 1
    return whole(text, KV_HEADS) or whole(text, HEADS)


def _head_dim(text: Mapping[str, Any]) -> int | None:
    rope, rest = whole(text, ("qk_rope_head_dim",), at_least=0), whole(text, ("qk_nope_head_dim",), at_least=0)
    if rope and rest:
        return rope + rest
    size = whole(text, HEAD_DIM, at_least=0)
    if size:
        return size
    hidden, heads = whole(text, HIDDEN), whole(text, HEADS)
    return hidden // heads if hidden and heads else None


def _gated_delta(text: Mapping[str, Any]) -> CacheLayers | str:
    """A layer of a gated delta network: a convolution's last inputs and a matrix per head (vLLM's mamba_utils)."""
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    key_heads, value_heads, key_dim, value_dim = (whole(text, (name,)) for name in names)
    kernel = whole(text, ("linear_conv_kernel_dim",))
    if not (key_heads and value_heads and key_dim and value_dim and kernel):
        return "linear attention of a kind that is not known"
    inputs = (2 * key_dim * key_heads + value_dim * value_heads) * (kernel - 1)
    matrix = value_heads * value_dim * key_dim
    if text.get("mamba_ssm_dtype") == "float32":
        return CacheLayers("state", 1, inputs, fixed_bytes=4 * matrix)
    return CacheLayers("state", 1, inputs + matrix)


def _longest(text: Mapping[str, Any]) -> int | None:
    lengths = [length for name in LENGTHS if (length := whole(text, (name,))) is not None]
    return min(lengths, default=None)


def _dtype(config: Mapping[str, Any]) -> str | None:
    value = config.get("dtype") or config.get("torch_dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else None


def _quantization(config: Mapping[str, Any]) -> str | None:
    value = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(value, Mapping):
        return None
    method = value.get("quant_method")
    return method if isinstance(method, str) else "unnamed"
