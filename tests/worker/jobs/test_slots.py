"""Slots: first come, first served; each given back once; nothing counted that does not exist."""

from __future__ import annotations

import asyncio
import random

import pytest

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.slots import Slots, engine_slots, tokens_per_job, with_headroom


async def test_slots_are_granted_in_order_and_never_beyond_capacity() -> None:
    slots = Slots(3, 10)
    order: list[int] = []

    async def job(number: int) -> None:
        with await slots.take():
            order.append(number)
            assert slots.in_use <= 3
            await asyncio.sleep(0.001)

    await asyncio.gather(*(job(number) for number in range(30)))
    assert order == list(range(30))
    assert (slots.in_use, slots.waiting) == (0, 0)


async def test_a_heavy_job_is_not_overtaken_and_cannot_ask_for_more_than_there_is() -> None:
    slots = Slots(4, 10)
    first = await slots.take(2)
    heavy = asyncio.create_task(slots.take(99))
    await asyncio.sleep(0)
    light = asyncio.create_task(slots.take(1))
    await asyncio.sleep(0)
    assert slots.waiting == 2
    first.release()
    assert (await heavy).weight == 4
    assert not light.done()
    (await heavy).release()
    (await light).release()
    assert (slots.in_use, slots.waiting) == (0, 0)


async def test_waiting_too_long_is_overloaded_and_leaves_nothing() -> None:
    slots = Slots(1, 0.02)
    with await slots.take():
        with pytest.raises(JobError) as refusal:
            await slots.take()
        assert refusal.value.code is Code.OVERLOADED
        assert slots.waiting == 0
    assert slots.in_use == 0


async def test_a_second_release_is_loud() -> None:
    slots = Slots(1, 1)
    slot = await slots.take()
    slot.release()
    with pytest.raises(RuntimeError):
        slot.release()
    assert slots.in_use == 0


async def test_a_cancellation_at_the_moment_of_the_grant_loses_no_slot() -> None:
    slots = Slots(1, 10)
    held = await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    held.release()  # grants the slot ...
    waiting.cancel()  # ... to someone who has just gone
    await asyncio.wait((waiting,))
    assert (slots.in_use, slots.waiting) == (0, 0)
    (await slots.take()).release()


async def test_storms_of_cancellations_leave_everything_free() -> None:
    chance = random.Random(3)
    slots = Slots(5, 0.01)

    async def job() -> None:
        with await slots.take(chance.randint(1, 3)):
            await asyncio.sleep(chance.uniform(0, 0.004))

    jobs = [asyncio.create_task(job()) for _ in range(400)]
    for task in jobs:
        if chance.random() < 0.5:
            await asyncio.sleep(0)
            task.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert (slots.in_use, slots.waiting) == (0, 0)


def test_concurrency_follows_the_scarcer_of_sequences_and_kv_cache() -> None:
    assert engine_slots(128, None, 500) == 128
    assert engine_slots(128, 1_000_000, 500) == 128
    assert engine_slots(128, 10_000, 500) == 20
    assert engine_slots(128, 100, 500) == 1
    assert [with_headroom(number) for number in (1, 4, 128)] == [2, 5, 160]


def test_a_job_needs_what_the_guardrails_let_it_have() -> None:
    assert tokens_per_job(32_768, 1024, 256) == 1024 // 3 + 256
    assert tokens_per_job(512, 1024, 256) == 512
    assert tokens_per_job(131_072, 0, 256) == 2048
    assert tokens_per_job(1024, 0, 0) == 1024
