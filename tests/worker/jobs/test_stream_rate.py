"""The pace of streams: one alone is free, many take turns, and the first word is never held back."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, closing

import pytest

from llmpod.worker.jobs.stream_rate import BURST_S, FREE, Pace


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


async def sent_in(seconds: float, pace: Pace, streams: int, *, each_s: float) -> int:
    """How many chunks `streams` streams send in so long, each of which has something new every `each_s`."""
    count, end = 0, time.monotonic() + seconds

    async def stream() -> None:
        nonlocal count
        with closing(pace.stream()) as turns:
            while time.monotonic() < end:
                turns.take()
                count += 1
                await asyncio.gather(turns.next(), asyncio.sleep(each_s))

    await asyncio.gather(*(stream() for _ in range(streams)))
    return count


@pytest.mark.parametrize("streams", [1, 8, 64])
async def test_all_streams_together_keep_to_the_rate(streams: int) -> None:
    rate = 100
    sent = await sent_in(1.0, Pace(0, rate), streams, each_s=0.001)
    assert sent <= rate * (1.0 + 2 * BURST_S) + streams, "more than the rate, what may be used later, and first chunks"


async def test_streams_that_send_less_than_they_may_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, now = Pace(0, 100), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with closing(pace.stream()) as one, closing(pace.stream()) as other:
        for number in range(100):
            now += 0.0101 / FREE  # one chunk of either, in turns
            turns = (one, other)[number % 2]
            turns.take()
            sent = asyncio.ensure_future(turns.next())
            await asyncio.sleep(0)
            assert sent.done(), number


def test_what_was_sent_too_fast_is_waited_for() -> None:
    pace, now = Pace(0, 100 / FREE), 1000.0
    assert [pace.count(now) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not pace.count(now + 0.02), "two of the three that were too many are due"
    assert pace.count(now + 0.2)
