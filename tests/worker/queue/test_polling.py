"""How jobs are asked for: at once, never too many, and side by side only where that helps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmpod.worker.queue.polling import MOST_ABREAST, Poller
from tests.worker.scripted import ScriptedEngine, serving, until

pytestmark = pytest.mark.process

Answer = Callable[[int], Awaitable[list[Any] | None]]


class PolledWorker:
    """A worker with so many slots, which notes what is asked for on its behalf."""

    def __init__(self, slots: int, answer: Answer) -> None:
        self.slots = slots
        self.answer = answer
        self.jobs: list[Any] = []
        self.asking: list[int] = []
        self.most_calls = 0
        self.told: list[str] = []
        self.shutdown = asyncio.Event()

    async def fetch(self, session: object, wanted: int) -> list[Any] | None:
        assert wanted > 0
        self.asking.append(wanted)
        self.most_calls = max(self.most_calls, len(self.asking))
        assert sum(self.asking) + len(self.jobs) <= self.slots, "more were asked for than there are slots"
        try:
            return await self.answer(wanted)
        finally:
            self.asking.remove(wanted)

    @asynccontextmanager
    async def taking(self) -> AsyncIterator[Poller]:
        poller = Poller(
            lambda: self.slots - len(self.jobs),
            self.fetch,
            self.jobs.append,
            lambda event, **fields: self.told.append(event),
            self.shutdown,
            timeout_s=60,
        )
        running = asyncio.create_task(poller.run())
        try:
            yield poller
        finally:
            self.shutdown.set()
            poller.half_close()
            await asyncio.wait((running,), timeout=1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def queue_of(count: int, *, most: int, rtt_s: float = 0.01) -> Answer:
    """A queue that hands out at most `most` jobs a call; when it is empty, the call is held."""
    left = count

    async def answer(wanted: int) -> list[Any]:
        nonlocal left
        await asyncio.sleep(rtt_s)
        if not left:
            await asyncio.sleep(60)
        given = min(left, wanted, most)
        left -= given
        return list(range(given))

    return answer


async def test_one_call_takes_what_a_generous_queue_has() -> None:
    worker = PolledWorker(100, queue_of(100, most=1000))
    async with worker.taking():
        await until(lambda: len(worker.jobs) == 100)
    assert worker.most_calls == 1


async def test_a_queue_that_gives_one_job_a_call_is_asked_side_by_side() -> None:
    worker = PolledWorker(200, queue_of(150, most=1))
    async with worker.taking():
        await until(lambda: len(worker.jobs) == 150)
        assert worker.most_calls == MOST_ABREAST
        await until(lambda: len(worker.asking) == MOST_ABREAST)


async def test_an_idle_worker_has_one_call_open() -> None:
    held = asyncio.Event()
    answers = [1, 1, 1, 1, 1, 1]

    async def answer(wanted: int) -> list[Any] | None:
        if answers:
            return [answers.pop()]
        await asyncio.wait_for(held.wait(), 0.3)
        return None

    worker = PolledWorker(50, answer)
    async with worker.taking():
        await until(lambda: worker.most_calls == MOST_ABREAST)
        held.set()  # every call comes back empty
        held.clear()
        await until(lambda: len(worker.asking) == 1)
        assert sum(worker.asking) == 50 - len(worker.jobs)


async def test_a_full_worker_asks_when_a_seat_becomes_free() -> None:
    worker = PolledWorker(2, queue_of(5, most=10, rtt_s=0))
    async with worker.taking() as poller:
        await until(lambda: len(worker.jobs) == 2)
        await asyncio.sleep(0.02)
        assert not worker.asking
        worker.jobs.pop()
        poller.wake()
        await until(lambda: len(worker.jobs) == 2)


async def test_failures_are_told_and_repeated_with_pauses() -> None:
    calls: list[float] = []

    async def answer(wanted: int) -> None:
        calls.append(time.monotonic())
        raise OSError("no network")

    worker = PolledWorker(5, answer)
    async with worker.taking():
        await until(lambda: len(calls) == 4)
    assert calls[3] - calls[0] > 0.1
    assert set(worker.told) == {"take_failed"}
    assert worker.most_calls == 1


@pytest.mark.parametrize("policy", ["fill", "one", "random"])
async def test_every_queued_job_runs_whatever_a_call_hands_out(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    engine = ScriptedEngine(tokens_per_s=200, max_num_seqs=16)
    async with serving(monkeypatch, engine, options={"rate_limits": False}) as served:
        served.endpoint.set_faults(take_policy=policy, network_latency_ms=20)
        ids = [await served.submit(sampling_params={"max_tokens": 5}) for _ in range(80)]
        for job_id in ids:
            await served.ended(job_id)
        assert engine.most_requests <= served.worker.engine_capacity
        assert len({event["request_id"] for event in served.events.named("end")}) == 80
