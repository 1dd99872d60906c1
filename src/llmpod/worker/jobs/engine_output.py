"""Output of the engine as plain data, converted from vLLM's types."""

from __future__ import annotations

import math
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
    """Token counts, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


@dataclass(frozen=True)
class Timings:
    """Durations inside the engine, by its own clocks, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class Step:
    """Output since the last step; `finished` is true for the last one."""

    deltas: list[Delta] = field(default_factory=list)
    usage: Usage = Usage(0, 0, None)
    finished: bool = False
    timings: Timings | None = None


class ConstraintError(ValueError):
    """The engine could not compile a request's structured output, or no token of the model satisfies it.

    A ValueError, which vLLM's application answers with a 400: sending the request again would not help.
    """

    def __init__(self) -> None:
        super().__init__(
            "The engine cannot follow this structured output: it is too complex, or nothing can satisfy it."
        )


def step(output: Any, completion_tokens: int) -> Step:
    """Convert vLLM's RequestOutput and the number of tokens generated so far into a Step."""
    deltas = [
        Delta(
            index=choice.index,
            text=choice.text,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            logprobs=_logprobs(choice) if choice.logprobs else None,
        )
        for choice in output.outputs
    ]
    usage = Usage(len(output.prompt_token_ids or ()), completion_tokens, output.num_cached_tokens)
    timings = timings_of(output.metrics) if output.finished and output.metrics is not None else None
    return Step(deltas, usage, output.finished, timings)


def timings_of(stats: Any) -> Timings:
    """Convert vLLM's RequestStateStats, whose times are monotonic seconds; 0 stands for "did not happen"."""
    if not stats.scheduled_ts or not stats.first_token_ts:
        return Timings(0.0, 0.0, 0.0)
    return Timings(
        queue_ms=_ms(stats.scheduled_ts - stats.queued_ts),
        prefill_ms=_ms(stats.first_token_ts - stats.scheduled_ts),
        decode_ms=_ms(stats.last_token_ts - stats.first_token_ts),
    )


def _logprobs(choice: Any) -> list[dict[str, Any]]:
    """Logprobs per token: the chosen token, then the alternatives. -inf is not JSON: an impossible token has null."""
    rows = []
    for token_id, candidates in zip(choice.token_ids, choice.logprobs, strict=False):
        ranked = sorted(candidates.items(), key=lambda item: item[1].rank or 0)
        chosen = candidates.get(token_id)
        rows.append(
            {
                "token": chosen.decoded_token if chosen else None,
                "logprob": _finite(chosen.logprob) if chosen else None,
                "top": [{"token": entry.decoded_token, "logprob": _finite(entry.logprob)} for _, entry in ranked],
            }
        )
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
