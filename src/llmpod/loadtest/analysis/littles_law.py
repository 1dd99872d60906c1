"""Little's law as a check of a closed loop: throughput x latency = clients, else some were idle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmpod.loadtest.model.job_record import Job

BATCHES = 8


@dataclass(frozen=True, slots=True)
class Little:
    """`ratio` = throughput * mean latency / clients. Within its error of 1, the clients were never idle."""

    clients: int
    throughput_per_s: float
    latency_s: float
    ratio: float
    error: float
    holds: bool


def little(jobs: Sequence[Job], clients: int, window_start_ms: float, window_end_ms: float) -> Little | None:
    """From the jobs (of any role) that were under way inside the window, each with the share of it that was. The window
    is split into batches whose means are nearly independent; None with too few jobs for that."""
    batch_ms = (window_end_ms - window_start_ms) / BATCHES
    if batch_ms <= 0:
        return None
    done, busy_ms = 0.0, [0.0] * BATCHES
    for job in jobs:
        share = job.share_within(window_start_ms, window_end_ms)
        if job.sent_ms is None or job.done_ms is None or not share:
            continue
        start, end = max(job.sent_ms, window_start_ms), min(job.done_ms, window_end_ms)
        done += share
        at = int((start - window_start_ms) / batch_ms)
        while start < end and at < BATCHES:
            until = min(end, window_start_ms + (at + 1) * batch_ms)
            busy_ms[at] += max(0.0, until - start)
            start, at = until, at + 1
    if done < 2 * BATCHES:
        return None
    ratios = [ms / batch_ms / clients for ms in busy_ms]
    ratio = math.fsum(ratios) / BATCHES
    spread = math.sqrt(math.fsum((one - ratio) ** 2 for one in ratios) / (BATCHES - 1) / BATCHES)
    error = max(0.05, 2 * spread)
    throughput_per_s = done / (BATCHES * batch_ms) * 1000
    return Little(clients, throughput_per_s, math.fsum(busy_ms) / done / 1000, ratio, error, abs(ratio - 1) <= error)
