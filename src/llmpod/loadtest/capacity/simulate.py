"""Discrete-event simulation of a RunPod endpoint: queue, slots, dead time per job, autoscaler, cold starts.

The model of a worker, from measurements of a real endpoint (3.45 s between jobs that run 2.80 s): a job starts
`pickup_idle_s` after it was sent to a free slot, and never sooner than `pickup_busy_s` after the slot's last job ended;
`reply_s` after its end the client has the answer. Jobs that run together on one worker slow each other down by
`slowdown` per neighbour.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmpod.protocol import request_count_workers


@dataclass(frozen=True, slots=True)
class Service:
    """`exec_s`: execution times to draw from, as one job alone takes them."""

    exec_s: tuple[float, ...]
    pickup_idle_s: float = 0.0
    pickup_busy_s: float = 0.0
    reply_s: float = 0.0
    slots: int = 1
    slowdown: float = 0.0

    @property
    def per_worker_per_s(self) -> float:
        """The most jobs a worker can do per second."""
        mean = math.fsum(self.exec_s) / len(self.exec_s) * (1 + self.slowdown * (self.slots - 1))
        return self.slots / (mean + self.pickup_busy_s)


@dataclass(frozen=True, slots=True)
class Withheld:
    """`workers` of the fleet take no jobs between the two times."""

    from_s: float
    to_s: float
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Fixed:
    """A number of workers that stays; `ready_s` says when each can take its first job."""

    ready_s: tuple[float, ...]
    withheld: tuple[Withheld, ...] = ()


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """RunPod's two rules. REQUEST_COUNT wants ceil((queued + running) / value) workers. QUEUE_DELAY adds one at each
    check while the oldest queued job waits longer than `value` seconds. Step and check period of the latter are not
    published: these are guesses.
    """

    kind: Literal["REQUEST_COUNT", "QUEUE_DELAY"]
    value: float
    workers_min: int = 0
    workers_max: int = 3
    cold_start_s: float = 60.0
    idle_timeout_s: float = 5.0
    check_s: float = 1.0


@dataclass(slots=True)
class SimJob:
    sent_s: float
    start_s: float = math.nan
    end_s: float = math.nan
    done_s: float = math.nan
    worker: int = -1

    @property
    def delay_s(self) -> float:
        return self.start_s - self.sent_s

    @property
    def total_s(self) -> float:
        return self.done_s - self.sent_s


@dataclass(slots=True)
class Outcome:
    """`worker_s`: worker time from readiness to stop; `starting_s`: time spent starting (billed or not: RunPod's pages
    disagree)."""

    jobs: list[SimJob]
    worker_s: float
    starting_s: float
    cold_starts: int


@dataclass(slots=True)
class _Worker:
    number: int
    state: Literal["starting", "up", "stopped"]
    since_s: float
    running: dict[int, list[float]] = field(default_factory=dict)  # job -> [work left]
    picked: int = 0  # slots that are taken, running or about to
    at_s: float = 0.0
    version: int = 0
    free_s: list[float] = field(default_factory=list)  # a heap: when each free slot can start a job
    idle_since_s: float = 0.0
    held: bool = False


class Simulation:
    """`Simulation(service, fleet, seed).closed(clients, jobs)` or `.open(times)`."""

    def __init__(self, service: Service, fleet: Fixed | Autoscaler, seed: int = 0) -> None:
        self._service, self._fleet = service, fleet
        self._draw = random.Random(seed)  # noqa: S311 - a simulation
        self._events: list[tuple[float, int, Callable[..., None], tuple[int, ...]]] = []
        self._count = 0
        self._jobs: list[SimJob] = []
        self._queue: deque[int] = deque()
        self._workers: list[_Worker] = []
        self._resubmit = False
        self._limit = 0
        self._finished = 0
        self._now = 0.0
        self._worker_s = self._starting_s = 0.0
        self._cold = 0
        if isinstance(fleet, Fixed):
            for ready_s in fleet.ready_s:
                self._start_worker(ready_s, cold=False)
            for pause in fleet.withheld:
                self._at(pause.from_s, self._on_hold, pause.workers, True)
                self._at(pause.to_s, self._on_hold, pause.workers, False)
        else:
            for _ in range(fleet.workers_min):
                self._start_worker(0.0, cold=False)
            self._at(fleet.check_s, self._on_check)

    def closed(self, clients: int, jobs: int) -> Outcome:
        """So many clients, each of which sends when its last answer is there, until so many jobs are done."""
        self._resubmit, self._limit = True, jobs
        for _ in range(min(clients, jobs)):
            self._at(0.0, self._on_arrive)
        return self._run()

    def open(self, times_s: Sequence[float]) -> Outcome:
        self._limit = len(times_s)
        for at_s in times_s:
            self._at(at_s, self._on_arrive)
        return self._run()

    def _at(self, at_s: float, then: Callable[..., None], *what: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, then, what))

    def _run(self) -> Outcome:
        while self._events and self._finished < self._limit:
            self._now, _, then, what = heapq.heappop(self._events)
            then(*what)
            self._assign()
        for worker in self._workers:
            if worker.state == "up":
                self._worker_s += self._now - worker.since_s
        done = [job for job in self._jobs if not math.isnan(job.done_s)]
        return Outcome(done, self._worker_s, self._starting_s, self._cold)

    def _on_arrive(self) -> None:
        if self._resubmit and len(self._jobs) >= self._limit:
            return
        self._jobs.append(SimJob(self._now))
        self._queue.append(len(self._jobs) - 1)
        self._scale()

    def _on_ready(self, number: int) -> None:
        self._come_up(self._workers[number])
        self._watch_idle(self._workers[number])

    def _on_begin(self, what: int) -> None:
        """A slot that was picked starts to execute, and slows the other jobs on its worker down."""
        job, worker = self._jobs[what], self._workers[self._jobs[what].worker]
        self._progress(worker)
        job.start_s = self._now
        worker.running[what] = [self._draw.choice(self._service.exec_s)]
        self._next_end(worker)

    def _on_end(self, number: int, version: int) -> None:
        worker = self._workers[number]
        if version != worker.version:
            return
        self._progress(worker)
        for what in [key for key, left in worker.running.items() if left[0] <= 1e-9]:
            del worker.running[what]
            job = self._jobs[what]
            job.end_s, job.done_s = self._now, self._now + self._service.reply_s
            worker.picked -= 1
            heapq.heappush(worker.free_s, self._now + self._service.pickup_busy_s)
            worker.idle_since_s = self._now
            self._at(job.done_s, self._on_done)
        self._next_end(worker)
        self._scale()
        self._watch_idle(worker)

    def _on_done(self) -> None:
        self._finished += 1
        if self._resubmit:
            self._on_arrive()

    def _on_hold(self, count: int, held: bool) -> None:
        """Withholds the youngest workers that are up, or gives so many of the withheld ones back."""
        for worker in [one for one in reversed(self._workers) if one.state == "up" and one.held != held][:count]:
            worker.held = held

    def _on_check(self) -> None:
        fleet = self._fleet
        if isinstance(fleet, Autoscaler):
            self._at(self._now + fleet.check_s, self._on_check)
            oldest_s = self._now - self._jobs[self._queue[0]].sent_s if self._queue else 0.0
            if fleet.kind == "QUEUE_DELAY" and oldest_s > fleet.value and self._alive() < fleet.workers_max:
                self._start_worker(self._now + fleet.cold_start_s, cold=True)
            self._scale()

    def _on_idle(self, number: int) -> None:
        fleet, worker = self._fleet, self._workers[number]
        if not isinstance(fleet, Autoscaler) or worker.state != "up" or worker.picked:
            return
        if self._now - worker.idle_since_s >= fleet.idle_timeout_s - 1e-9 and self._alive() > fleet.workers_min:
            worker.state = "stopped"
            self._worker_s += self._now - worker.since_s

    def _assign(self) -> None:
        """The oldest job goes to the slot that can start it first; among equals, to the worker with the fewest jobs."""
        while self._queue:
            free = [one for one in self._workers if one.state == "up" and not one.held and one.free_s]
            if not free:
                return
            what = self._queue.popleft()
            job = self._jobs[what]
            soonest_s = max(job.sent_s + self._service.pickup_idle_s, self._now)
            worker = min(free, key=lambda one: (max(soonest_s, one.free_s[0]), one.picked, one.number))
            job.worker = worker.number
            worker.picked += 1
            self._at(max(soonest_s, heapq.heappop(worker.free_s)), self._on_begin, what)

    def _progress(self, worker: _Worker) -> None:
        """Subtracts the work that was done since the last event."""
        done = (self._now - worker.at_s) * self._pace(worker)
        for left in worker.running.values():
            left[0] -= done
        worker.at_s = self._now

    def _pace(self, worker: _Worker) -> float:
        """Work done per second, of each job that runs on a worker."""
        return 1 / (1 + self._service.slowdown * max(0, len(worker.running) - 1))

    def _next_end(self, worker: _Worker) -> None:
        worker.version += 1
        if worker.running:
            soonest = max(0.0, min(left[0] for left in worker.running.values())) / self._pace(worker)
            self._at(self._now + soonest, self._on_end, worker.number, worker.version)

    def _start_worker(self, ready_s: float, *, cold: bool) -> None:
        worker = _Worker(len(self._workers), "starting", self._now)
        self._workers.append(worker)
        if cold:
            self._cold += 1
            self._starting_s += ready_s - self._now
        if ready_s <= self._now:
            self._come_up(worker)
        else:
            self._at(ready_s, self._on_ready, worker.number)

    def _come_up(self, worker: _Worker) -> None:
        """The pick-up takes its time on a worker that has just come up, too."""
        worker.state, worker.since_s, worker.idle_since_s = "up", self._now, self._now
        worker.free_s = [self._now + self._service.pickup_idle_s] * self._service.slots

    def _alive(self) -> int:
        return sum(1 for one in self._workers if one.state != "stopped")

    def _scale(self) -> None:
        fleet = self._fleet
        if not isinstance(fleet, Autoscaler):
            return
        busy = sum(one.picked for one in self._workers)
        if fleet.kind == "REQUEST_COUNT":
            wanted = request_count_workers(len(self._queue), busy, fleet.value)
        else:
            # A queue with nobody there to serve it always gets its first worker.
            wanted = 1 if self._queue and self._alive() == 0 else 0
        for _ in range(min(wanted, fleet.workers_max) - self._alive()):
            self._start_worker(self._now + fleet.cold_start_s, cold=True)

    def _watch_idle(self, worker: _Worker) -> None:
        if isinstance(self._fleet, Autoscaler) and worker.picked == 0:
            self._at(self._now + self._fleet.idle_timeout_s, self._on_idle, worker.number)
