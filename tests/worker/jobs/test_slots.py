"""Slots: first come, first served; each given back once; nothing counted that does not exist."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.slots import Slot, Slots, retry_after_s


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


def test_retry_after_follows_the_rate_at_which_requests_finish() -> None:
    assert retry_after_s(5, [], 100.0) == 60  # nothing has finished: no rate
    assert retry_after_s(0, [99.0], 100.0) == 1
    assert retry_after_s(9, [90.0 + i for i in range(10)], 100.0) == 10  # one a second, and nine before this one
    assert retry_after_s(10_000, [99.9], 100.0) == 60
    assert retry_after_s(3, [1.0, 2.0], 100.0) == 60  # so long ago that it says nothing of now


@given(st.integers(0, 10_000), st.lists(st.floats(0, 1000), max_size=50).map(sorted), st.floats(0, 1000))
def test_retry_after_is_a_whole_number_of_seconds_from_1_to_60(waiting: int, finishes: list[float], age: float) -> None:
    now = (finishes[-1] if finishes else 0.0) + age
    waits = [retry_after_s(more, finishes, now) for more in (waiting, waiting + 1)]
    assert all(isinstance(wait, int) and 1 <= wait <= 60 for wait in waits)
    assert waits[0] <= waits[1]


async def test_beyond_max_queue_size_a_job_fails_at_once_with_when_to_come_back() -> None:
    slots = Slots(2, 30, max_waiting=1)
    held = [await slots.take(), await slots.take()]
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)
    with pytest.raises(JobError) as refusal:
        await slots.take()
    assert refusal.value.code is Code.OVERLOADED
    assert refusal.value.details == {"retry_after_s": 60, "waiting": 1, "capacity": 2}
    begun = asyncio.create_task(slots.take(begun=True))  # a further request of a job that has had its turn
    await asyncio.sleep(0)
    assert slots.waiting == 2
    for slot in held:
        slot.release()
    for task in (waiting, begun):
        (await task).release()
    assert (slots.in_use, slots.waiting) == (0, 0)


@given(st.data())
async def test_admission_keeps_its_promises_for_any_weights_and_any_order_of_events(data: st.DataObject) -> None:
    """Never beyond capacity; in order of arrival; refused only if as many wait as may; nothing left at the end."""
    capacity = data.draw(st.integers(1, 6))
    most = data.draw(st.none() | st.integers(1, 3))
    slots = Slots(capacity, 60, most)
    tasks: list[asyncio.Task[Slot]] = []
    admitted: list[int] = []

    async def take(number: int, weight: int) -> Slot:
        slot = await slots.take(weight)
        admitted.append(number)
        return slot

    gone: set[int] = set()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["take", "release", "cancel"]))
        if action == "take":
            was_waiting, was_free = slots.waiting, capacity - slots.in_use
            weight = data.draw(st.integers(1, 8))
            tasks.append(asyncio.create_task(take(len(tasks), weight)))
            await asyncio.sleep(0)
            task = tasks[-1]
            fits = was_waiting == 0 and min(weight, capacity) <= was_free
            refused = not fits and most is not None and was_waiting >= most
            assert task.done() == (fits or refused)
            if task.done():
                assert (task.exception() is not None) == refused
            if refused:
                gone.add(len(tasks) - 1)
        elif tasks:
            index = data.draw(st.integers(0, len(tasks) - 1))
            task = tasks[index]
            if index not in gone and task.done() == (action == "release"):
                gone.add(index)
                task.result().release() if action == "release" else task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert 0 <= slots.in_use <= capacity
        assert most is None or slots.waiting <= most
    assert admitted == sorted(admitted)
    while len(gone) < len(tasks):
        done = [index for index, task in enumerate(tasks) if index not in gone and task.done()]
        assert done, "jobs wait, nobody holds a slot, and none is granted"
        for index in done:
            gone.add(index)
            tasks[index].result().release()
        for _ in range(3):
            await asyncio.sleep(0)
    assert (slots.in_use, slots.waiting) == (0, 0)
