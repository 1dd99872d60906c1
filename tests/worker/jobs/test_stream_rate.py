"""The pace of streams: one alone is free, many take turns, and the first word is never held back."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, closing

import pytest

from llmpod.worker.jobs.stream_rate import Pace


async def test_a_first_chunk_never_waits_and_the_next_waits_for_its_turn() -> None:
    pace = Pace(0.2, 500)
    with closing(pace.stream()) as turns:
        began = time.monotonic()
        await turns.next()
        assert time.monotonic() - began < 0.1
        turns.take()
        await turns.next()
        assert time.monotonic() - began >= 0.2


async def test_time_spent_sending_counts() -> None:
    with closing(Pace(0.1, 500).stream()) as turns:
        turns.take()
        await asyncio.sleep(0.15)
        sent = asyncio.ensure_future(turns.next())
        await asyncio.sleep(0)
        assert sent.done(), "the turn had come already"


@pytest.mark.parametrize("count", [1, 16, 128])
def test_more_streams_speak_less_often(count: int) -> None:
    pace = Pace(0, 200)
    with ExitStack() as stack:
        for _ in range(count):
            turns = stack.enter_context(closing(pace.stream()))
            before = pace.gap_s
            turns.take()
            turns.take()
            assert pace.gap_s == pytest.approx(before + 0.005), "a stream counts once"
        assert pace.gap_s == pytest.approx(count * 0.005)
    assert pace.gap_s == 0, "streams that have ended still count"


def test_a_stream_that_has_not_begun_does_not_count() -> None:
    pace = Pace(0.01, 500)
    with closing(pace.stream()):
        assert pace.gap_s == 0.01
