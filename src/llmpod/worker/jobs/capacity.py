"""Capacity of a worker: how many requests to keep in its engine, from the engine's numbers and the limits."""

from __future__ import annotations

from typing import Protocol

from llmpod.worker.event_log import Emit
from llmpod.worker.settings import Settings

TYPICAL_TOKENS = 2048
"""Assumed tokens per job when neither the guardrails nor MAX_MODEL_LEN give a lower limit."""
CHARS_PER_TOKEN = 3
"""A token has as many or more in most texts; where a text has fewer, vLLM's own scheduler queues."""


class EngineNumbers(Protocol):
    """What is needed of an engine, once it has started."""

    generates: bool
    max_model_len: int
    max_num_seqs: int

    @property
    def kv_cache_tokens(self) -> int | None: ...


def engine_capacity(engine: EngineNumbers, settings: Settings, profile_tokens: int = 0) -> int:
    """Requests to keep in the engine: those that it can decode together, and a quarter more, so that it never waits.

    `profile_tokens`: the longest answer that the profile allows beyond MAX_TOKENS_MAX; 0: no longer one.
    """
    chars = settings.max_prompt_chars if engine.generates else settings.max_input_chars
    tokens = chars // CHARS_PER_TOKEN
    if engine.generates:
        tokens += max(settings.max_tokens_max, profile_tokens)
    bounded = chars and (settings.max_tokens_max or not engine.generates)
    needed = min(engine.max_model_len, tokens if bounded else TYPICAL_TOKENS)
    together = engine.max_num_seqs
    if engine.kv_cache_tokens is not None:
        together = max(1, min(together, engine.kv_cache_tokens // max(1, needed)))
    return together + max(1, together // 4)


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
