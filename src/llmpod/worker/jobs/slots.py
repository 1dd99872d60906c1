"""Slots: limits the number of requests in the engine, and computes how many jobs to hold.

The engine holds a bounded number of requests; a job beyond that waits here, in order of arrival, and fails as
`overloaded` when it has waited MAX_QUEUE_WAIT. Everything counted is derived from the slots that exist.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Self

from llmpod.worker.errors import Code, JobError

TYPICAL_TOKENS = 2048
"""Assumed tokens per job when neither the guardrails nor MAX_MODEL_LEN give a lower limit."""


def engine_slots(max_num_seqs: int, kv_cache_tokens: int | None, tokens_per_job: int) -> int:
    """Requests that can decode together: MAX_NUM_SEQS, or fewer if the KV cache cannot hold so many jobs."""
    if kv_cache_tokens is None:
        return max_num_seqs
    return max(1, min(max_num_seqs, kv_cache_tokens // max(1, tokens_per_job)))


def tokens_per_job(max_model_len: int, max_prompt_chars: int, max_tokens: int) -> int:
    """Estimated upper bound of tokens per job. 0 for a limit means that there is none.

    A token has three characters or more in most texts; where a text has fewer, vLLM's own scheduler queues.
    """
    if not max_prompt_chars or not max_tokens:
        return min(max_model_len, TYPICAL_TOKENS)
    return min(max_model_len, max_prompt_chars // 3 + max_tokens)


def with_headroom(slots: int) -> int:
    """Requests to keep in the engine: its slots and a quarter more, so that a free slot is filled at once."""
    return slots + max(1, slots // 4)


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Slots:
    """Semaphore of `capacity` slots for requests of different weight, in order of arrival."""

    def __init__(self, capacity: int, max_wait_s: float) -> None:
        """`max_wait_s`: the longest a job may wait; 0 refuses what does not fit at once."""
        self.capacity = capacity
        self._max_wait_s = max_wait_s
        self._held: set[Slot] = set()
        self._waiting: deque[tuple[Slot, asyncio.Future[None]]] = deque()

    @property
    def in_use(self) -> int:
        """Slots held; 0 at rest."""
        return sum(slot.weight for slot in self._held)

    @property
    def waiting(self) -> int:
        """Requests waiting for a slot; 0 at rest."""
        return len(self._waiting)

    async def take(self, weight: int = 1) -> Slot:
        """Acquire `weight` slots (all of them, if `weight` is above the capacity).

        Raises:
            JobError: overloaded, after MAX_QUEUE_WAIT.
        """
        slot = Slot(self, min(weight, self.capacity))
        if not self._waiting and self._fits(slot):
            self._held.add(slot)
            return slot
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((slot, granted))
        try:
            async with asyncio.timeout(self._max_wait_s):
                await granted
        except BaseException as error:
            self._abandon(slot, granted)
            if isinstance(error, TimeoutError):
                raise JobError(
                    Code.OVERLOADED,
                    f"The worker was full: no slot became free within {self._max_wait_s:g} s.",
                    waiting=self.waiting,
                    capacity=self.capacity,
                ) from None
            raise
        return slot

    def _fits(self, slot: Slot) -> bool:
        return self.in_use + slot.weight <= self.capacity

    def _release(self, slot: Slot) -> None:
        if slot not in self._held:
            raise RuntimeError("a slot was released twice")
        self._held.remove(slot)
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
