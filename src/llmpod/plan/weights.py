"""Size of a model's weights, from the headers of its safetensors files. No weight is read.

A folder's headers are read here; those of a hub model by huggingface_hub, which asks for the first bytes of each file.
A file that does not answer makes the size unknown, never smaller.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000
"""Bytes a header may have: the limit of the safetensors library."""
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
        UnknownWeightsError: there are none, one is missing, cut off, or has no header.
    """
    out: list[Tensor] = []
    for name in _file_names(folder):
        try:
            out += _read_header(folder / name)
        except OSError as error:
            raise UnknownWeightsError(f"{name}: {error.strerror or error}") from None
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


def _read_header(path: Path) -> list[Tensor]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise UnknownWeightsError(f"{path.name} has no safetensors header (a pointer, or cut off)")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise UnknownWeightsError(f"{path.name} has a header that is no JSON") from None
    tensors, end = _parse_header(header, path.name)
    if size < 8 + length + end:
        raise UnknownWeightsError(f"{path.name} is cut off: {size} of {8 + length + end} bytes")
    return tensors


def _parse_header(header: object, name: str) -> tuple[list[Tensor], int]:
    """The tensors of a header, and where the last of them ends."""
    if not isinstance(header, dict):
        raise UnknownWeightsError(f"{name} has a header that is no object")
    out, end = [], 0
    for key, value in header.items():
        if key == "__metadata__":
            continue
        facts = value if isinstance(value, dict) else {}
        dtype, shape, offsets = facts.get("dtype"), _sizes(facts.get("shape")), _sizes(facts.get("data_offsets"))
        if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
            raise UnknownWeightsError(f"{name} describes a tensor in a way that safetensors does not")
        out.append(Tensor(key, dtype, shape))
        end = max(end, offsets[1])
    return out, end


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of sizes, or None for what is none."""
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 1 << 60 for one in value):
        return None
    return tuple(value)
