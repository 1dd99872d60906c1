"""Slots: limits the number of requests in the engine.

The engine holds a bounded number of requests; a job beyond that waits here, in order of arrival, and fails as
`overloaded` when it has waited MAX_QUEUE_WAIT. Everything counted is derived from the slots that exist.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

from llmpod.worker.errors import Code, JobError

RETRY_AFTER_S = 60
"""The longest that a refused client is asked to wait, and how far back the rate of finished requests is measured."""
FINISHES = 256
"""Finished requests from which that rate is computed."""


def retry_after_s(waiting: int, finishes: Sequence[float], now: float) -> int:
    """Seconds after which a refused job should be sent again: until the waiting ones and it have had their turn.

    `finishes`: when the latest requests left the engine, oldest first. Whole seconds from 1 to RETRY_AFTER_S; the most
    where nothing has finished for so long that there is no rate.
    """
    recent = [at for at in finishes if now - at < RETRY_AFTER_S]
    if not recent:
        return RETRY_AFTER_S
    per_s = len(recent) / max(now - recent[0], 1.0)
    return min(RETRY_AFTER_S, max(1, math.ceil((waiting + 1) / per_s)))


class Slot:
    """One or more slots held by a request. Released once, by `with`; a second release is a bug and raises."""

    __slots__ = ("_slots", "weight")

    def __init__(self, slots: Slots, weight: int) -> None:
        self._slots = slots
        self.weight = weight

    def release(self) -> None:
        """Release the slot. Never waits."""
        self._slots._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class Slots:
    """Semaphore of `capacity` slots for requests of different weight, in order of arrival."""

    def __init__(self, capacity: int, max_wait_s: float, max_waiting: int | None = None) -> None:
        """`max_wait_s`: the longest a job may wait; 0 refuses what does not fit at once.

        `max_waiting`: the most jobs that may wait (MAX_QUEUE_SIZE); None: no limit.
        """
        self.capacity = capacity
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._finishes: deque[float] = deque(maxlen=FINISHES)  # when the latest slots were released
        self._held: set[Slot] = set()
        self._waiting: deque[tuple[Slot, asyncio.Future[None]]] = deque()

    @property
    def in_use(self) -> int:
        """Slots held; 0 at rest."""
        return sum(slot.weight for slot in tuple(self._held))  # a copy: metrics are read in other threads

    @property
    def waiting(self) -> int:
        """Requests waiting for a slot; 0 at rest."""
        return len(self._waiting)

    async def take(self, weight: int = 1, *, begun: bool = False) -> Slot:
        """Acquire `weight` slots (all of them, if `weight` is above the capacity).

        `begun`: the job has had a slot before, so that MAX_QUEUE_SIZE, which refuses new jobs, does not hold for it.

        Raises:
            JobError: overloaded, after MAX_QUEUE_WAIT or at once for MAX_QUEUE_SIZE.
        """
        slot = Slot(self, min(weight, self.capacity))
        if not self._waiting and self._fits(slot):
            self._held.add(slot)
            return slot
        if self._max_waiting is not None and self.waiting >= self._max_waiting and not begun:
            raise self._overloaded(f"{self.waiting} jobs wait for a slot already")
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((slot, granted))
        try:
            async with asyncio.timeout(self._max_wait_s):
                await granted
        except BaseException as error:
            self._abandon(slot, granted)
            if isinstance(error, TimeoutError):
                raise self._overloaded(f"no slot became free within {self._max_wait_s:g} s") from None
            raise
        return slot

    def _overloaded(self, why: str) -> JobError:
        return JobError(Code.OVERLOADED, f"The worker was full: {why}.", **self.load())

    def load(self) -> dict[str, Any]:
        """What a refused client is told: when to come back, how many wait, and how many slots there are."""
        wait_s = retry_after_s(self.waiting, self._finishes, time.monotonic())
        return {"retry_after_s": wait_s, "waiting": self.waiting, "capacity": self.capacity}

    def _fits(self, slot: Slot) -> bool:
        return self.in_use + slot.weight <= self.capacity

    def _release(self, slot: Slot) -> None:
        if slot not in self._held:
            raise RuntimeError("a slot was released twice")
        self._held.remove(slot)
        self._finishes.append(time.monotonic())
        self._admit()

    def _abandon(self, slot: Slot, granted: asyncio.Future[None]) -> None:
        """Undo a wait that was cancelled or timed out; the slot may have been granted in the same moment."""
        if slot in self._held:
            self._held.remove(slot)
        else:
            self._waiting.remove((slot, granted))
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            slot, granted = self._waiting.popleft()
            self._held.add(slot)
            if not granted.done():
                granted.set_result(None)
