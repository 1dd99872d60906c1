"""What the engine hands over while it generates: plain data, free of vLLM's types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Delta:
    """New text of one choice. `finish_reason` is set on the choice's last delta: stop, length or abort."""

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # the stop string or token that ended it, if one did
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


@dataclass(frozen=True)
class Timings:
    """Where the engine's time went, from its own clocks, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Step:
    """What became ready since the last step; the last one is `finished`."""

    deltas: list[Delta] = field(default_factory=list)
    usage: Usage = Usage(0, 0, None)
    finished: bool = False
    timings: Timings | None = None
