"""Fit of the simulation's worker parameters to measured jobs."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from llmpod.loadtest.analysis.workers import at_once, execution_span, start_classes
from llmpod.loadtest.capacity.simulate import Service
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.job_record import Job, grouped
from llmpod.loadtest.stats import nearest_rank

ENOUGH = 10
# A worker that has done nothing for so long is not between two jobs any more.
RESTED_MS = 1500.0
BETWEEN_RUNS_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Observations of a worker, in seconds. `idle_p`: the percentile of `idle_s` that is the time to an idle worker;
    `busy_s` is empty where no job waited behind another."""

    exec_s: tuple[float, ...]
    reply_s: tuple[float, ...]
    idle_s: tuple[float, ...]
    idle_p: float
    busy_s: tuple[float, ...]
    slots: int
    slowdown: float

    def service(self) -> Service:
        reply_s = max(0.0, median(self.reply_s))
        idle_s = median(self.idle_s) if self.idle_p == 50 else nearest_rank(sorted(self.idle_s), self.idle_p)
        assumed_s = idle_s + reply_s if self.slots == 1 else 0.0
        busy_s = median(self.busy_s) if self.busy_s else assumed_s
        return Service(self.exec_s, idle_s, busy_s, reply_s, self.slots, self.slowdown)

    def drawn_again(self, seed: int) -> "Seen":
        """A bootstrap draw: as many jobs, with replacement."""
        draw = random.Random(seed)  # noqa: S311 - resampling

        def again(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(draw.choices(values, k=len(values))) if values else ()

        return replace(
            self,
            exec_s=again(self.exec_s),
            reply_s=again(self.reply_s),
            idle_s=again(self.idle_s),
            busy_s=again(self.busy_s),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """`notes` say what could not be seen in the data and had to be assumed."""

    service: Service
    cold_start_s: float | None
    jobs: int
    notes: tuple[str, ...]
    seen: Seen


def on_one_axis(runs: Iterable[Sequence[Job]]) -> list[Job]:
    """The jobs of several runs, one run after the other: each run's own clock starts at 0, and two jobs of one worker
    must not seem to have run together."""
    out: list[Job] = []
    start_ms = 0.0
    for jobs in runs:
        out += [
            replace(job, sent_ms=start_ms + job.sent_ms, done_ms=start_ms + job.done_ms)
            for job in jobs
            if job.sent_ms is not None and job.done_ms is not None
        ]
        start_ms = max((job.done_ms or 0.0 for job in out), default=0.0) + BETWEEN_RUNS_MS
    return out


def fit(jobs: Sequence[Job]) -> Fit:
    """Raises UsageError when the runs do not tell execution and queue times (OpenAI mode, imported CSVs)."""
    whole = [
        job
        for job in jobs
        if job.ok and job.exec_ms is not None and job.delay_ms is not None and job.total_ms is not None
    ]
    if len(whole) < ENOUGH:
        raise UsageError(
            f"capacity needs at least {ENOUGH} successful jobs with delayTime and executionTime; these runs "
            f"have {len(whole)} "
            "(--mode runsync, run and stream record them)"
        )
    notes: list[str] = []
    classes = start_classes(jobs, whole)
    warm = [job for job in whole if classes.get(id(job)) == "warm"] or whole
    cold = sorted(job.delay_ms or 0.0 for job in whole if classes.get(id(job)) == "cold")
    per_worker = grouped(warm, lambda job: job.worker_id or "?")
    if "?" in per_worker:
        notes.append("jobs without workerId are taken as one worker's")
    slots = max(at_once(some) for some in per_worker.values())
    occupancy = [pair for some in per_worker.values() for pair in _occupancy(some)]
    slowdown = _slowdown(occupancy) if slots > 1 else 0.0
    alone = tuple(exec_s / (1 + slowdown * max(0.0, together - 1)) for exec_s, together in occupancy)
    idle_ms, idle_p = _pickups_idle(warm, per_worker, notes)
    busy = tuple(_pickups_busy(per_worker, slots))
    seen = Seen(
        alone,
        tuple((job.overhead_ms or 0.0) / 1000 for job in warm),
        tuple(ms / 1000 for ms in idle_ms),
        idle_p,
        busy if len(busy) >= 5 else (),
        slots,
        slowdown,
    )
    service = seen.service()
    if not seen.busy_s:
        gap = service.pickup_busy_s * 1000
        notes.append(f"no job was seen to wait behind another: the gap between two jobs is assumed to be {gap:.0f} ms")
    if not _was_full(whole, slots):
        notes.append(
            f"no phase had more jobs in flight than {slots} per worker: whether a worker can do more at once was not "
            "seen, and the forecast may ask for too many workers"
        )
    return Fit(service, nearest_rank(cold, 50) / 1000 if cold else None, len(warm), tuple(notes), seen)


def _was_full(jobs: Sequence[Job], slots: int) -> bool:
    """Whether in some phase more jobs were in flight than its workers ran at once."""
    by_phase = grouped(jobs, lambda job: job.phase).values()
    return any(_most_open(some) > slots * len({job.worker_id for job in some}) for some in by_phase)


def _pickups_idle(warm: Sequence[Job], per_worker: dict[str, list[Job]], notes: list[str]) -> tuple[list[float], float]:
    """(delays in ms, percentile of them): what a job waits although a worker is free. The delays of jobs whose worker
    had rested, else those of a lone client's jobs."""
    rested = []
    for some in per_worker.values():
        end_ms = None
        for (_, until), job in sorted(
            ((span, job) for job in some if (span := execution_span(job))), key=lambda one: one[0]
        ):
            if end_ms is not None and (job.sent_ms or 0.0) > end_ms + RESTED_MS:
                rested.append(job.delay_ms or 0.0)
            end_ms = max(end_ms or 0.0, until)
    if len(rested) >= 5:
        return rested, 50
    by_phase = grouped(warm, lambda job: job.phase).values()
    lone = [job.delay_ms or 0.0 for some in by_phase if _most_open(some) <= 1 for job in some]
    if len(lone) >= 5:
        notes.append(
            "no job found a rested worker (a slow --request-rate shows one): the time to an idle worker is taken from "
            "a lone client's jobs, and may hold the pause between two jobs"
        )
        return lone, 50
    notes.append(
        "no phase had one client at a time: the delay on an idle worker is taken from the shortest tenth of all"
    )
    return [job.delay_ms or 0.0 for job in warm], 10


def _most_open(jobs: Sequence[Job]) -> int:
    """The most jobs between sending and answer at one time."""
    edges = []
    for job in jobs:
        if job.sent_ms is not None and job.total_ms is not None:
            edges += [(job.sent_ms, 1), (job.sent_ms + job.total_ms - 0.5, -1)]
    most = now = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


def _pickups_busy(per_worker: dict[str, list[Job]], slots: int) -> list[float]:
    """Seconds between a job's end and the start of one that was already waiting. For several slots: what is left of the
    delay when a slot came free, which the overlap hides; then the shortest waits tell."""
    gaps = []
    for some in per_worker.values():
        spans = sorted((span, job) for job in some if (span := execution_span(job)) is not None)
        ends: list[float] = []
        for (start, end), job in sorted(spans, key=lambda one: one[0][0]):
            sent = job.sent_ms or 0.0
            before = [at for at in ends if at <= start + 5]
            running = len(ends) - len(before)
            if before and running == slots - 1 and sent < max(before) - 20:
                gaps.append(max(0.0, start - max(before)))
            ends.append(end)
            if len(ends) > 4 * slots + 8:
                ends.sort()
                del ends[: len(ends) - 2 * slots - 4]
    return [gap / 1000 for gap in gaps]


def _occupancy(some: Sequence[Job]) -> list[tuple[float, float]]:
    """(execution seconds, mean number of jobs on the worker meanwhile, itself included)."""
    spans = sorted(span for job in some if (span := execution_span(job)) is not None)
    out = []
    for number, (start, end) in enumerate(spans):
        if end <= start:
            out.append(((end - start) / 1000, 1.0))
            continue
        shared = 0.0
        for near in range(max(0, number - 128), min(len(spans), number + 129)):
            if near != number:
                shared += max(0.0, min(end, spans[near][1]) - max(start, spans[near][0]))
        out.append(((end - start) / 1000, 1 + shared / (end - start)))
    return out


def _slowdown(pairs: Sequence[tuple[float, float]]) -> float:
    """Slowdown per neighbour by least squares of execution time on the number of neighbours; never negative."""
    n = len(pairs)
    mean_y = math.fsum(y for y, _ in pairs) / n
    mean_x = math.fsum(x - 1 for _, x in pairs) / n
    spread = math.fsum((x - 1 - mean_x) ** 2 for _, x in pairs)
    if spread / n < 0.05:
        return 0.0
    slope = math.fsum((x - 1 - mean_x) * (y - mean_y) for y, x in pairs) / spread
    alone = mean_y - slope * mean_x
    return max(0.0, slope / alone) if alone > 0 else 0.0
