"""Stretches of a phase's time: slices and bins with their jobs, silences, and batches for what needs a spread."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import stdev

from llmpod.loadtest.analysis.latency import totals
from llmpod.loadtest.analysis.timeline import HealthReport, InFlight
from llmpod.loadtest.model.job_record import Job, grouped
from llmpod.loadtest.model.plan import Phase
from llmpod.loadtest.stats import nearest_rank, ranked

LONG_RUN_S = 600.0
BATCHES = 8
BIN_WIDTHS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the measured window, by when jobs were done."""

    start_s: float
    n: int
    failed: int
    p50_ms: float | None
    p95_ms: float | None
    per_s: float
    live: float | None


@dataclass(frozen=True, slots=True)
class Bin:
    """A stretch of the phase, from its first sending to its last end, jobs of every role: what was done, what failed,
    and how many were in flight on average."""

    start_s: float
    width_s: float
    done: int
    failed: int
    in_flight: float


@dataclass(frozen=True, slots=True)
class Silence:
    """A stretch of the window in which jobs were in flight and nothing was answered."""

    from_s: float
    to_s: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class Little:
    """Little's law as a check of a closed loop: `ratio` = throughput * mean latency / clients. Within its error of 1,
    the clients were never idle."""

    clients: int
    throughput_per_s: float
    latency_s: float
    ratio: float
    error: float
    holds: bool


def slices(
    measured: Sequence[Job], start_ms: float, end_ms: float, timeline: HealthReport | None, slice_s: float | None
) -> tuple[Slice, ...]:
    if not slice_s or end_ms <= start_ms:
        return ()

    def number_of(job: Job) -> int | None:
        return None if job.done_ms is None else int((job.done_ms - start_ms) / 1000 // slice_s)

    groups = grouped(measured, number_of)
    out = []
    for number in range(math.ceil((end_ms - start_ms) / 1000 / slice_s)):
        some = groups[number]
        p50, p95 = totals(some)
        low, high = start_ms + number * slice_s * 1000, start_ms + (number + 1) * slice_s * 1000
        live = [point.live for point in timeline.points if low <= point.t_ms < high] if timeline else []
        width_s = min(slice_s, (end_ms - low) / 1000)
        out.append(
            Slice(
                start_s=number * slice_s,
                n=len(some),
                failed=sum(not job.ok for job in some),
                p50_ms=p50,
                p95_ms=p95,
                per_s=len(some) / width_s if width_s > 0 else 0.0,
                live=ranked(live, 50)[0],
            )
        )
    return tuple(out)


def throughput_error(jobs: Sequence[Job], start_ms: float, end_ms: float) -> float | None:
    """The relative standard error of the throughput, from the spread of what batches of the window answered (their sum
    is nearly free of dependence, one job is not). None with too few answers for that."""
    width_ms = (end_ms - start_ms) / BATCHES
    if width_ms <= 0:
        return None
    counts = [0.0] * BATCHES
    for job in jobs:
        if not job.ok or job.sent_ms is None or job.done_ms is None:
            continue
        first = max(0, int((job.sent_ms - start_ms) // width_ms))
        last = min(BATCHES - 1, int((job.done_ms - start_ms) // width_ms))
        if first == last and start_ms <= job.sent_ms and job.done_ms <= end_ms:
            counts[first] += 1
            continue
        for number in range(first, last + 1):
            low = start_ms + number * width_ms
            counts[number] += job.share_within(low, low + width_ms)
    mean = math.fsum(counts) / BATCHES
    if mean < 2:
        return None
    return stdev(counts, mean) / math.sqrt(BATCHES) / mean


def little(jobs: Sequence[Job], clients: int, start_ms: float, end_ms: float) -> Little | None:
    """Little's law from the jobs (of any role) that were under way inside the window, each with the share of it that
    was. The window is split into batches whose means are nearly independent; None with too few jobs for that."""
    batch_ms = (end_ms - start_ms) / BATCHES
    if batch_ms <= 0:
        return None
    done, busy_ms = 0.0, [0.0] * BATCHES
    for job in jobs:
        share = job.share_within(start_ms, end_ms)
        if job.sent_ms is None or job.done_ms is None or not share:
            continue
        done += share
        for at, ms in _split(max(job.sent_ms, start_ms), min(job.done_ms, end_ms), start_ms, batch_ms, BATCHES):
            busy_ms[at] += ms
    if done < 2 * BATCHES:
        return None
    ratios = [ms / batch_ms / clients for ms in busy_ms]
    ratio = math.fsum(ratios) / BATCHES
    error = max(0.05, 2 * stdev(ratios, ratio) / math.sqrt(BATCHES))
    throughput_per_s = done / (BATCHES * batch_ms) * 1000
    return Little(clients, throughput_per_s, math.fsum(busy_ms) / done / 1000, ratio, error, abs(ratio - 1) <= error)


def _split(low: float, high: float, zero: float, width: float, number: int) -> Iterator[tuple[int, float]]:
    """(batch, length inside of it) for each of the `number` batches from `zero` on that a stretch of time touches."""
    at = int((low - zero) / width)
    while low < high and at < number:
        until = min(high, zero + (at + 1) * width)
        yield at, max(0.0, until - low)
        low, at = until, at + 1


def over_time(jobs: Sequence[Job], flight: InFlight, zero_ms: float) -> tuple[Bin, ...]:
    """The phase in up to 60 stretches of a round length, of five answers each or more; times from the start of the
    measured window."""
    sent = [job.sent_ms for job in jobs if job.sent_ms is not None]
    done = [job.done_ms for job in jobs if job.done_ms is not None]
    if not sent or not done or max(done) <= min(sent):
        return ()
    start_ms, end_ms = min(sent), max(done)
    rough_s = (end_ms - start_ms) / 1000 * max(1 / 60, 5 / len(done))
    width_s = next((one for one in BIN_WIDTHS_S if one >= rough_s), rough_s)
    number = math.ceil((end_ms - start_ms) / 1000 / width_s)
    answers, failed, busy_ms = [0] * number, [0] * number, [0.0] * number
    for job in jobs:
        if job.done_ms is not None:
            at = min(number - 1, int((job.done_ms - start_ms) / 1000 / width_s))
            answers[at] += 1
            failed[at] += not job.ok
    for low, high, count in flight.steps(start_ms, end_ms):
        for at, ms in _split(low, high, start_ms, width_s * 1000, number):
            busy_ms[at] += count * ms
    return tuple(
        Bin(
            (start_ms - zero_ms) / 1000 + at * width_s,
            width := min(width_s, (end_ms - start_ms) / 1000 - at * width_s),
            answers[at],
            failed[at],
            busy_ms[at] / 1000 / width if width > 0 else 0.0,
        )
        for at in range(number)
    )


def silences(
    jobs: Sequence[Job], ok: Sequence[Job], flight: InFlight, start_ms: float, end_ms: float
) -> tuple[Silence, ...]:
    """When jobs were in flight and no answer came for more than a second and eight times what three quarters of the
    answers took. An observation, not a verdict on whose fault it was; the longest first."""
    took_ms = sorted(job.total_ms for job in ok if job.total_ms is not None)
    if len(took_ms) < 10:
        return ()
    limit_ms = max(1000.0, 8 * nearest_rank(took_ms, 75))
    ends = sorted(job.done_ms for job in jobs if job.done_ms is not None and start_ms <= job.done_ms <= end_ms)
    sent = sorted(job.sent_ms for job in jobs if job.sent_ms is not None)
    found = []
    for before, after in itertools.pairwise([start_ms, *ends]):
        if after - before <= limit_ms:
            continue
        if not flight.at(before):  # nothing was asked before that
            before = sent[min(bisect_right(sent, before), len(sent) - 1)]
        if after - before > limit_ms:
            found.append(
                Silence((before - start_ms) / 1000, (after - start_ms) / 1000, flight.at(math.nextafter(after, before)))
            )
    return tuple(sorted(found, key=lambda one: one.from_s - one.to_s))


def slice_width_s(phase: Phase, span_s: float) -> float | None:
    if phase.shape in ("soak", "stages", "ramp") or span_s >= LONG_RUN_S:
        return max(1.0, round(span_s / 60)) if span_s < 3600 else 60.0
    return None
