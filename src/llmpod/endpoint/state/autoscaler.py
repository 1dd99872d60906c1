"""Autoscaler rules of RunPod (QUEUE_DELAY, REQUEST_COUNT) as functions on plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from llmpod.protocol import request_count_workers


def request_count_target(queued: int, running: int, scaler_value: float, least: int, most: int) -> int:
    """REQUEST_COUNT, kept between workersMin and workersMax."""
    return min(max(request_count_workers(queued, running, scaler_value), least), most)


def queue_delay_target(
    waits_s: Iterable[float],
    live: int,
    starting: int,
    scaler_value: float,
    step: int,
    least: int,
    most: int,
    *,
    first_at_once: bool = True,
) -> int:
    """QUEUE_DELAY: more workers while some job has waited longer than scalerValue seconds.

    `waits_s` are the waits of the queued jobs, longest first; `live` workers include those `starting`. RunPod documents
    neither the step nor what happens with no worker at all; here the first job starts the first worker at once
    (`first_at_once`), at most `step` are added per look, and never more than there are late jobs that no starting
    worker is meant for.
    """
    waits = iter(waits_s)
    first = next(waits, None)
    if first is None:
        return min(max(live, least), most)
    if live == 0 and first_at_once:
        return min(max(1, least), most)
    late = 0
    if first > scaler_value:
        # Counting past what one step can use would walk a long queue for nothing.
        enough = starting + step
        late = 1 + sum(
            1 for _, _ in zip(range(enough), takewhile(lambda wait: wait > scaler_value, waits), strict=False)
        )
    added = min(step, max(0, late - starting))
    return min(max(live + added, least), most)


def surplus(idle_s: Sequence[float], live: int, least: int, most: int, idle_timeout_s: float) -> list[int]:
    """QUEUE_DELAY: which idle workers to stop, as positions in `idle_s` (seconds idle), longest idle first.

    A worker goes when it has been idle for idleTimeout and workersMin remain, or when there are more than workersMax.
    """
    order = sorted(range(len(idle_s)), key=lambda position: -idle_s[position])
    stopped: list[int] = []
    for position in order:
        left = live - len(stopped)
        if left > most or (left > least and idle_s[position] >= idle_timeout_s):
            stopped.append(position)
    return stopped


def backoff_s(crashes: int, longest_s: float) -> float:
    """Pause before the next start after so many crashes in a row: none after the first, then 1, 2, 4 ... seconds."""
    if crashes < 2:
        return 0.0
    return float(min(2 ** min(crashes - 2, 30), longest_s))
