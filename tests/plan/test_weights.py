"""Sizes from the headers of safetensors files, and what makes them unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmpod.plan.weights import INDEX, Tensor, UnknownWeightsError, bytes_per_element, folder_tensors, total


def write(path: Path, tensors: dict[str, tuple[str, list[int]]], *, cut: int = 0) -> None:
    """A safetensors file whose weights are a hole: as large as a real one, and nothing on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = int(Tensor(name, dtype, tuple(shape)).elements * bytes_per_element(dtype))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end - cut)


def write_index(folder: Path, names: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def test_the_files_of_the_index_count_and_no_others(tmp_path: Path) -> None:
    write(tmp_path / "model-1.safetensors", {"embed_tokens.weight": ("BF16", [1000, 64])})
    write(tmp_path / "model-2.safetensors", {"up_proj.weight": ("BF16", [256, 64]), "norm.weight": ("F32", [64])})
    write(tmp_path / "consolidated.safetensors", {"all": ("BF16", [99_999, 64])})
    assert total(folder_tensors(tmp_path)).floats == 64_000 + 16_384 + 64
    write(tmp_path / "stray.safetensors", {"stray": ("BF16", [5, 5])})
    write_index(tmp_path, {"embed_tokens.weight": "model-1.safetensors", "up_proj.weight": "model-2.safetensors"})
    weights = total(folder_tensors(tmp_path))
    assert weights.floats == 64_000 + 16_384 + 64
    assert weights.linear == 16_384
    assert weights.stored_bytes == 2 * (64_000 + 16_384) + 4 * 64


def test_tied_output_layers_are_not_loaded_twice_and_packed_weights_stay_as_they_are() -> None:
    tensors = [
        Tensor("model.embed_tokens.weight", "BF16", (10, 4)),
        Tensor("lm_head.weight", "BF16", (10, 4)),
        Tensor("layers.0.q_proj.qweight", "I32", (4, 8)),
        Tensor("layers.0.q_proj.scales", "F16", (4,)),
        Tensor("layers.0.k_proj.weight", "F8_E4M3", (4, 4)),
        Tensor("scalar", "F32", ()),
    ]
    tied, loose = total(tensors, tied=True), total(tensors)
    assert (tied.floats, loose.floats) == (40 + 4 + 1, 80 + 4 + 1)
    assert tied.other_bytes == 4 * 8 * 4 + 16


def test_a_file_as_large_as_a_real_one_is_read_by_its_header_alone(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"mlp.weight": ("BF16", [100_000, 50_000])})
    assert total(folder_tensors(tmp_path)).stored_bytes == 10_000_000_000


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("model.safetensors", b"", "header too small"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "a pointer"),
        ("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}", "header too large"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "invalid JSON in header"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"{}", "no tensors"),
        ("model.safetensors", (4).to_bytes(8, "little") + b"nope", "invalid JSON in header"),
        ("model.safetensors", (7).to_bytes(8, "little") + b'{"a":1}', "expected struct TensorInfo"),
        ("pytorch_model.bin", b"x", "no safetensors files"),
        (INDEX, b"{}", "no index"),
        (INDEX, b'{"weight_map": {"a": "model-1.safetensors"}}', "model-1.safetensors"),
        (INDEX, b'{"weight_map": {"a": "../../etc/passwd"}}', "not in the folder"),
        (INDEX, b'{"weight_map": {"a": 5}}', "not in the folder"),
        (INDEX, b'{"weight_map": [1]}', "no index"),
    ],
)
def test_what_cannot_be_read_is_unknown_and_never_less(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    if name == INDEX:
        write(tmp_path / "model-2.safetensors", {"mlp.weight": ("BF16", [10, 10])})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnknownWeightsError, match=why):
        total(folder_tensors(tmp_path))


def test_a_file_that_was_cut_off_or_has_a_type_of_its_own_is_unknown(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"mlp.weight": ("BF16", [1000, 10])}, cut=1)
    with pytest.raises(UnknownWeightsError, match="cut off"):
        folder_tensors(tmp_path)
    for dtype in ("", "X16", "F", "BF16 ", "F99999", "../F8"):
        with pytest.raises(UnknownWeightsError):
            total([Tensor("a", dtype, (1,))])


@pytest.mark.parametrize(
    ("dtype", "size"), [("F64", 8), ("BF16", 2), ("F8_E4M3", 1), ("F4", 0.5), ("U8", 1), ("I32", 4), ("BOOL", 1)]
)
def test_bytes_of_a_type(dtype: str, size: float) -> None:
    assert bytes_per_element(dtype) == size
