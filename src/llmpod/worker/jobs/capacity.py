"""Capacity of a worker: how many requests to keep in its engine, from the engine's numbers and the limits."""

from __future__ import annotations

from typing import Protocol

from llmpod.worker.event_log import Emit
from llmpod.worker.jobs import slots
from llmpod.worker.settings import Settings


class EngineNumbers(Protocol):
    """What is needed of an engine, once it has started."""

    generates: bool
    max_model_len: int
    max_num_seqs: int

    @property
    def kv_cache_tokens(self) -> int | None: ...


def engine_capacity(engine: EngineNumbers, settings: Settings, profile_tokens: int) -> int:
    """Requests to keep in the engine: those it decodes together, and some more so that it never waits for one.

    `profile_tokens`: the longest answer that the profile allows beyond MAX_TOKENS_MAX; 0: no longer one.
    """
    if engine.generates:
        most = settings.max_tokens_max and max(settings.max_tokens_max, profile_tokens)
        needed = slots.tokens_per_job(engine.max_model_len, settings.max_prompt_chars, most)
    else:
        needed = slots.tokens_per_input(engine.max_model_len, settings.max_input_chars)
    return slots.with_headroom(slots.engine_slots(engine.max_num_seqs, engine.kv_cache_tokens, needed))


def report_crowding(capacity: int, max_concurrency: int | None, emit: Emit) -> None:
    """Warn of a MAX_CONCURRENCY that makes jobs wait in this worker while others are idle."""
    if max_concurrency is not None and max_concurrency > 2 * capacity:
        emit(
            "concurrency",
            level="warning",
            max_concurrency=max_concurrency,
            capacity=capacity,
            note="This worker takes more than twice the jobs that its engine can run together; the rest wait here, "
            "where RunPod cannot give them to another worker. Lower or unset MAX_CONCURRENCY.",
        )
