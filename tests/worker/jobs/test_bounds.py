"""The bounds on what a job holds, and that reaching them costs next to nothing."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import JobError
from llmpod.worker.jobs import bounds
from llmpod.worker.jobs.bounds import LARGE_CHARS, LARGE_VALUES, OBJECT_IN_LIST, SLICE, Size

HOSTILE = [
    ({"prompt": "x", "k" * 1000: [1] * 200_000}, "k" * 200),
    ({"openai_route": "/v1/chat/completions", "openai_input": {"k" * 1000: [[1] * 10] * 20_000}}, "k" * 200),
    ({"prompt": "x", "k" * 5_000_000: [1] * 100_000}, "input"),
    ({"messages": [0] * 1_000_000}, "messages"),
    ({"messages": [{}] * 1_000_000}, "messages"),
    ({"prompt": "x", "images": ["x" * 1_000_000] * 21}, "images[19]"),
    ({"prompt": "x", "a": ["x" * 1_000_000] * 21}, "a[5]"),
    ({"prompt": "x", "a": {str(number): number for number in range(100_000)}}, "a.19997"),
]


@pytest.mark.parametrize(("job_input", "field"), HOSTILE)
def test_a_job_beyond_the_bounds_is_refused_in_constant_memory_and_little_time(job_input: Any, field: str) -> None:
    tracemalloc.start()
    began = time.thread_time()
    try:
        with pytest.raises(JobError) as caught:
            list(bounds.walk(job_input, 20_000, Size()))
        seconds, (_, peak) = time.thread_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.field == field
    assert peak < 100_000
    assert seconds < 0.5  # with every allocation traced


async def test_the_event_loop_goes_on_between_slices_and_a_small_job_is_checked_at_once() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await bounds.check({"prompt": "x", "sampling_params": {"stop": ["a"] * (SLICE // 2)}}, 20_000)
    assert turns == 0
    size = await bounds.check({"prompt": [1] * 20 * SLICE}, 100_000)
    assert size.large
    assert turns >= 20
    task.cancel()


@pytest.mark.parametrize(
    ("size", "large"),
    [(Size(), False), (Size(values=LARGE_VALUES + 1), True), (Size(chars=LARGE_CHARS + 1), True)],
)
async def test_work_on_a_large_job_is_done_beside_the_event_loop(size: Size, large: bool) -> None:
    assert (await size.aside(threading.get_ident) != threading.get_ident()) is large


values = st.recursive(
    st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(alphabet="aä", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet="bc", max_size=3), inner, max_size=4),
    max_leaves=30,
)


def amount(value: object, *, in_list: bool = False) -> int:
    """The same count by recursion."""
    if isinstance(value, dict):
        return (OBJECT_IN_LIST if in_list else 1) + sum(amount(item) for item in value.values())
    return 1 + sum(amount(item, in_list=True) for item in value) if isinstance(value, list) else 1


@given(values)
def test_every_value_is_counted(value: object) -> None:
    size = Size()
    list(bounds.walk(value, 10_000, size))
    assert size.values == amount(value)
    list(bounds.walk(value, size.values, Size()))
    with pytest.raises(JobError, match="values"):
        list(bounds.walk(value, size.values - 1, Size()))


def test_a_schema_may_have_bounds_that_no_integer_has() -> None:
    schema = {"type": "number", "maximum": 1.7976931348623157e308}
    for body in (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"tools": [{"type": "function", "function": {"parameters": {"properties": {"x": schema}}}}]},
    ):
        list(bounds.walk({"openai_route": "/v1/chat/completions", "openai_input": body}, 1000, Size()))


@pytest.mark.parametrize(
    ("job_input", "accepted"),
    [
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "x" * 9_000_000}}]}]}, True),
        ({"file": "x" * 9_000_000}, True),
        ({"prompt": "x" * 9_000_000}, False),
        ({"openai_route": "/v1/completions", "openai_input": {"prompt_logprobs": ["x" * 9_000_000]}}, False),
    ],
)
async def test_a_text_that_is_no_file_has_a_limit_of_its_own(job_input: object, accepted: bool) -> None:
    if accepted:
        assert (await bounds.check(job_input, 1000)).large
        return
    with pytest.raises(JobError, match=f"9000000 characters; {bounds.MAX_TEXT_CHARS} are accepted") as refused:
        await bounds.check(job_input, 1000)
    assert refused.value.field is not None


@pytest.mark.parametrize("field", ["prompt_logprobs", "stop", "messages"])
async def test_texts_that_are_no_files_have_a_limit_together(field: str) -> None:
    pieces = ["x" * 20_000] * (bounds.MAX_TEXT_CHARS // 20_000)
    assert (await bounds.check({field: pieces, "image": "x" * 1_000_000}, 1000)).large
    with pytest.raises(JobError, match=f"more than {bounds.MAX_TEXT_CHARS} characters of text") as refused:
        await bounds.check({field: [*pieces, "x" * 101]}, 1000)
    assert refused.value.field == f"{field}[{len(pieces)}]"
