"""Little's law as a check on a closed loop: clients = throughput x latency, or the measurement is not of a steady
state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmpod.loadtest.records import Job

BATCHES = 8


@dataclass(frozen=True, slots=True)
class Little:
    """`ratio` = throughput * mean latency / clients. 1 within its error means: steady, and the clients were never
    idle."""

    clients: int
    throughput_per_s: float
    latency_s: float
    ratio: float
    error: float
    holds: bool


def little(jobs: Sequence[Job], clients: int, window_start_ms: float, window_end_ms: float) -> Little | None:
    """From the jobs (of any role) that ended inside the window, split into batches whose means are nearly
    independent."""
    ended = sorted(
        (job.done_ms, job.done_ms - job.sent_ms)
        for job in jobs
        if job.done_ms is not None and job.sent_ms is not None and window_start_ms <= job.done_ms <= window_end_ms
    )
    span_s = (window_end_ms - window_start_ms) / 1000
    if len(ended) < 2 * BATCHES or span_s <= 0:
        return None
    throughput = len(ended) / span_s
    latency_s = math.fsum(took for _, took in ended) / len(ended) / 1000
    size = len(ended) // BATCHES
    ratios = []
    before = window_start_ms
    for batch in range(BATCHES):
        some = ended[batch * size : (batch + 1) * size]
        took_s = (some[-1][0] - before) / 1000
        before = some[-1][0]
        if took_s > 0:
            ratios.append(len(some) / took_s * math.fsum(took for _, took in some) / len(some) / 1000 / clients)
    if len(ratios) < 2:
        return None
    mean = math.fsum(ratios) / len(ratios)
    spread = math.sqrt(math.fsum((ratio - mean) ** 2 for ratio in ratios) / (len(ratios) - 1) / len(ratios))
    ratio = throughput * latency_s / clients
    # The window's edges cut off up to one job per client.
    edge = clients / len(ended)
    error = max(0.05, 2 * spread, edge)
    return Little(clients, throughput, latency_s, ratio, error, abs(ratio - 1) <= error)
