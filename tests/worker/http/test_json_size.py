"""Counting a JSON text's values in pieces is exact, wherever it is cut, and bounds what the parser gets."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import JobError
from llmpod.worker.http.json_size import JsonSize

TEXT = st.text(alphabet=st.sampled_from('",\\[{:a é\n'), max_size=8)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def commas_in(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max(0, len(value) - 1) + sum(map(commas_in, inner))


@given(VALUES, st.booleans(), st.lists(st.integers(0, 200), max_size=6))
def test_commas_outside_of_texts_are_counted_wherever_the_text_is_cut(
    value: Any, ascii_only: bool, cuts: list[int]
) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only).encode()
    size = JsonSize(1000)
    for start, end in pairwise(sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})):
        size.feed(content[start:end])
    assert size.commas == commas_in(value)


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_any_bytes_can_be_counted(pieces: list[bytes]) -> None:
    size = JsonSize(1000)
    for piece in pieces:
        size.feed(piece)


@pytest.mark.parametrize("unit", [b"0,", b"{},", b'"":0,', b'"a","b",', b'{"a":0},'])
def test_too_many_values_are_refused_and_as_many_as_allowed_are_not(unit: bytes) -> None:
    per_unit = unit.count(b",")
    JsonSize(100).feed(b"[" + unit * (100 // per_unit) + b"0]")
    with pytest.raises(JobError) as caught:
        JsonSize(100).feed(b"[" + unit * (102 // per_unit) + b"0]")
    assert caught.value.failure.status == 400


def test_a_long_text_is_one_value() -> None:
    size = JsonSize(100)
    for _ in range(100):
        size.feed(b'{"prompt": "' + b'a, \\"b\\", ' * 1000 + b'"}')
    assert size.commas == 0
