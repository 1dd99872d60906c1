"""Size of a model's weights, from the headers of its safetensors files. No weight is read.

A folder's headers are read by safetensors, those of a hub model by huggingface_hub, from the first bytes of each file.
A file that does not answer makes the size unknown, never smaller.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors

INDEX = "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
KEPT = re.compile(r"embed|wte|lm_head|output_layer|norm|router|gate\.weight$")
"""Tensors that quantisation while loading leaves as they are."""


class UnknownWeightsError(Exception):
    """The size cannot be told; the message says why."""


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str  # as safetensors writes it: F32, BF16, F8_E4M3 …
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes of all tensors together.

    floats: elements of tensors that are loaded in the model's data type, whatever type they are stored in.
    linear: those among them that quantisation while loading makes smaller.
    other_bytes: tensors that stay as they are stored: quantised weights, indices.
    """

    stored_bytes: int
    floats: int
    linear: int
    other_bytes: int


def bytes_per_element(dtype: str) -> float:
    """Bytes of an element by the name that safetensors gives its type.

    Raises:
        UnknownWeightsError: it is no such name.
    """
    if dtype == "BOOL":
        return 1.0
    match = re.match(r"(?:BF|F|I|U|C)(\d{1,3})(?:_|$)", dtype)
    if match is None:
        raise UnknownWeightsError(f"a tensor has the type {dtype[:20]!r}, which safetensors does not have")
    return int(match[1]) / 8


def total(tensors: Iterable[Tensor], *, tied: bool = False) -> Weights:
    """The sizes of tensors together. `tied`: the output layer is the embedding, so a copy of it is not loaded.

    Raises:
        UnknownWeightsError: a tensor's type is not known, or there are no tensors.
    """
    stored = floats = linear = other = 0
    for tensor in tensors:
        size = math.ceil(tensor.elements * bytes_per_element(tensor.dtype))
        stored += size
        if tied and tensor.name.endswith("lm_head.weight"):
            continue
        if tensor.dtype not in FLOATS:
            other += size
            continue
        floats += tensor.elements
        if len(tensor.shape) > 1 and not KEPT.search(tensor.name):
            linear += tensor.elements
    if not stored:
        raise UnknownWeightsError("its files hold no tensors")
    return Weights(stored, floats, linear, other)


def folder_tensors(folder: Path) -> list[Tensor]:
    """Every tensor of a folder's safetensors files: those that its index names, or all.

    Raises:
        UnknownWeightsError: there are none, or one is missing, cut off, or no such file.
    """
    out: list[Tensor] = []
    for name in _file_names(folder):
        try:
            with safetensors.safe_open(folder / name, framework="numpy") as file:
                parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no dict
        except (OSError, safetensors.SafetensorError) as error:
            raise UnknownWeightsError(f"{name} is missing, a pointer, cut off, or not safetensors: {error}") from None
        out += [Tensor(key, part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()]
    return out


def _file_names(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_bytes())["weight_map"]
            names = sorted(set(weight_map.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UnknownWeightsError(f"{INDEX} is no index of safetensors files") from None
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise UnknownWeightsError(f"{INDEX} names a file that is not in the folder")
        return names
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    names = [name for name in names if not name.startswith("consolidated")] or names  # the same weights, once more
    if not names:
        raise UnknownWeightsError("it has no safetensors files")
    return names
