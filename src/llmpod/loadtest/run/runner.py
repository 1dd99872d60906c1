"""Runner of a plan: phases one after the other, each after the queue has emptied, and a clean-up on every path."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from llmpod.loadtest.model.job_record import Job, Role
from llmpod.loadtest.model.plan import Phase, Plan
from llmpod.loadtest.run import queue_modes, stream_modes
from llmpod.loadtest.run.closed_loop import Feed
from llmpod.loadtest.run.context import RunContext, left_running
from llmpod.loadtest.run.guards import Guards, Stop
from llmpod.loadtest.run.payload import Bodies
from llmpod.loadtest.run.probes import HealthWatch, LagWatch
from llmpod.loadtest.units import count

MODES: dict[str, Callable[[RunContext, Job, dict[str, Any]], Awaitable[None]]] = {
    "runsync": queue_modes.runsync,
    "run": queue_modes.run,
    "stream": stream_modes.stream,
    "openai": stream_modes.openai,
    "http": stream_modes.http,
}
CLEAN_UP_S = 60.0


@dataclass(slots=True)
class Tally:
    """Progress of the run, for the display and the guards."""

    phase: Phase | None = None
    phase_number: int = 0
    sent: int = 0
    in_flight: int = 0
    done: int = 0  # measured, in this phase
    failed: int = 0
    first_ms: float | None = None
    finished: list[Job] = field(default_factory=list)  # of earlier sessions, too
    notes: list[str] = field(default_factory=list)


class Runner:
    """`await runner.run()`; `runner.stop(...)` from anywhere ends it early. Jobs in flight are cancelled in either
    case."""

    def __init__(
        self,
        context: RunContext,
        plan: Plan,
        payloads: Bodies,
        guards: Guards,
        health: HealthWatch,
        *,
        already: Iterable[Job] = (),
        check: Callable[[Phase, list[Job]], Stop | None] = lambda _phase, _jobs: None,
        climb: Callable[[Phase, list[Job]], str | None] = lambda _phase, _jobs: None,
    ) -> None:
        self._already = list(already)
        self.tally = Tally(finished=list(self._already))
        self.lag = LagWatch()
        self.stopped: Stop | None = None
        self._context, self._plan, self._payloads, self._guards, self._health = context, plan, payloads, guards, health
        self._check, self._climb = check, climb
        self._stopping = asyncio.Event()

    def stop(self, stop: Stop) -> None:
        if self.stopped is None:
            self.stopped = stop
            self._context.event("stopped", reason=stop.reason, exit_code=int(stop.exit_code))
        self._stopping.set()

    def left(self) -> str:
        """What a stop does with the jobs in flight, in words."""
        known = len(self._context.outstanding)
        lost = left_running(self._context.unnamed, purge=self._context.options.purge_on_abort)
        cancelled = f"{count(known, 'outstanding job')} {'is' if known == 1 else 'are'} cancelled"
        return "; ".join(part for part in (cancelled if known or not lost else None, lost) if part)

    async def run(self) -> None:
        watchers = [asyncio.create_task(self.lag.run()), asyncio.create_task(self._health.run())]
        try:
            for number, phase in enumerate(self._plan.phases, 1):
                if self.stopped:
                    break
                if not self._finished_before(phase):
                    await self._settle(number)
                    self.tally.phase, self.tally.phase_number = phase, number
                    self.tally.done, self.tally.failed, self.tally.first_ms = 0, 0, None
                    await self._phase(phase)
                why = None if self.stopped else self._climb(phase, self.tally.finished)
                if why:
                    self.tally.notes.append(why)
                    self._context.event("sweep_ended", reason=why)
                    break
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self.clean_up()

    async def clean_up(self) -> None:
        """Cancels the jobs in flight, within the limit of /cancel, and notes those it could not."""
        ids = list(self._context.outstanding)
        purge = self._context.options.purge_on_abort and self.stopped is not None
        lost = left_running(self._context.unnamed, purge=purge)
        if lost:
            self.tally.notes.append(lost)
            self._context.event("left_running", jobs=len(self._context.unnamed))
        if not ids and not purge:
            return
        results: list[Any] = []
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                results = await asyncio.gather(*(self._context.cancel(job_id) for job_id in ids))
                if purge:
                    await self._context.client.call("purge-queue", "POST", "/purge-queue", timeout_s=10)
        except Exception as error:  # noqa: BLE001 - nothing that goes wrong here may cost the report
            self.tally.notes.append(f"the clean-up did not end: {type(error).__name__}")
        cancelled = sum(1 for done in results if done)
        self._context.outstanding.clear()
        if ids:
            self.tally.notes.append(f"{cancelled} of {len(ids)} outstanding jobs were cancelled on the endpoint")

    async def _settle(self, number: int) -> None:
        """Between phases: waits until the endpoint has nothing left of the one before."""
        if number == 1 or not self._health.samples:
            return
        if await self._health.settled(self._context.options.settle) is False:
            self.tally.notes.append(
                f"phase {number} began although the endpoint was still busy after {self._context.options.settle:g} s"
            )

    async def _phase(self, phase: Phase) -> None:
        self._context.event("phase_started", phase=phase.name)
        self.lag.facts()
        body = self._closed(phase) if phase.kind == "closed" else self._open(phase)
        work = asyncio.create_task(body)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stopping):
                task.cancel()
            results = await asyncio.gather(work, stopping, return_exceptions=True)
            self._context.event("phase_ended", phase=phase.name, client=self.lag.facts())
        if isinstance(results[0], Exception):
            raise results[0]

    async def _closed(self, phase: Phase) -> None:
        mine, spent_ms = self._done_before(phase)
        feed = Feed(phase, already=frozenset(job.index for job in mine), spent_ms=spent_ms if phase.duration_s else 0.0)

        async def client(number: int) -> None:
            if phase.ramp_up_s:
                await asyncio.sleep(phase.ramp_up_s * number / phase.concurrency)
            in_a_row = 0
            while (due := feed.next(self._context.clock.now_ms())) is not None:
                job = Job(phase.name, due[1], due[0], self._plan.mode)
                await self._one(job)
                feed.done(job.role, self._context.clock.now_ms())
                in_a_row = 0 if job.ok else in_a_row + 1
                if in_a_row:
                    # An endpoint that refuses in a millisecond is not to be asked a thousand times a second.
                    await asyncio.sleep(min(1.0, 0.02 * 2 ** min(in_a_row, 6)))

        async with _group() as tasks:
            tasks.update(asyncio.create_task(client(number)) for number in range(phase.concurrency))

    async def _open(self, phase: Phase) -> None:
        done = {(job.role, job.index) for job in self._already if job.phase == phase.name}
        for index in range(phase.warmup_requests if not done else 0):
            await self._one(Job(phase.name, index, "warmup", self._plan.mode))
        cap = asyncio.Semaphore(phase.max_in_flight) if phase.max_in_flight else None
        start_ms: float | None = None
        async with _group() as tasks:
            for role, index, at_s in schedule(phase):
                if (role, index) in done:
                    continue
                if start_ms is None:
                    # A resumed schedule starts with its first request that is not done; nothing is caught up on in a
                    # burst.
                    start_ms = self._context.clock.now_ms() - (at_s * 1000 if done else 0.0)
                due_ms = start_ms + at_s * 1000
                wait_s = (due_ms - self._context.clock.now_ms()) / 1000
                await asyncio.sleep(max(0.0, wait_s))
                job = Job(phase.name, index, role, self._plan.mode, scheduled_ms=due_ms)
                task = asyncio.create_task(self._one(job, cap))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _one(self, job: Job, cap: asyncio.Semaphore | None = None) -> None:
        """One job from payload to disk. The record is written before the tally counts it."""
        try:
            if cap is not None:
                await cap.acquire()
            self.tally.sent += 1
            self.tally.in_flight += 1
            job.workers_at_submit = self._health.live
            try:
                job.prompt = self._payloads.name(job.index)
                await MODES[job.mode](self._context, job, self._payloads.body(self._plan.mode, job.phase, job.index))
            finally:
                self.tally.in_flight -= 1
                if cap is not None:
                    cap.release()
        except asyncio.CancelledError:
            job.done_ms = self._context.clock.now_ms()
            job.fail("client_cancelled", "the run was stopped")
            if id(job) in self._context.unnamed:
                job.warn("left_running")
                job.error = "the run was stopped before the service had named the job: it may run on"
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a job: one failed record, not a lost run
            job.done_ms = self._context.clock.now_ms()
            job.fail("internal", f"{type(error).__name__}: {self._context.client.clean(str(error))[:200]}")
        finally:
            if job.sent_ms is not None or job.error_class != "client_cancelled":
                self._context.journal.request(job)
            self._count(job)
        self._guards.take(job)
        phase = self.tally.phase
        stop = self._guards.check() or (self._check(phase, self.tally.finished) if phase else None)
        if stop is not None:
            self.stop(stop)

    def _count(self, job: Job) -> None:
        tally = self.tally
        tally.finished.append(job)
        if job.counts:
            tally.done += 1
            tally.failed += not job.ok
            tally.first_ms = job.sent_ms if tally.first_ms is None else tally.first_ms

    def _finished_before(self, phase: Phase) -> bool:
        """Whether an earlier session already did all of this phase's measured jobs."""
        mine, spent_ms = self._done_before(phase)
        if not mine:
            return False
        if phase.kind == "closed":
            over = phase.duration_s is not None and spent_ms >= phase.duration_s * 1000
            return over or (phase.requests is not None and len(mine) >= phase.requests)
        return len(mine) >= sum(role == "measured" for role, _, _ in schedule(phase))

    def _done_before(self, phase: Phase) -> tuple[list[Job], float]:
        """A phase's measured jobs of earlier sessions, and the ms from their first sending to their last end."""
        mine = [job for job in self._already if job.phase == phase.name and job.counts]
        first_ms = min((job.sent_ms or 0.0 for job in mine), default=0.0)
        return mine, max((job.done_ms or 0.0 for job in mine), default=0.0) - first_ms


def schedule(phase: Phase) -> Iterable[tuple[Role, int, float]]:
    """(role, index, due seconds) of an open phase, from its seed: the same again when a run is resumed."""
    times = phase.replay_s if phase.kind == "replay" else (phase.arrivals.times_s() if phase.arrivals else ())
    length = phase.arrivals.duration_s if phase.arrivals else float("inf")
    counts: dict[Role, int] = {"warmup": 0, "measured": 0, "cooldown": 0}
    for at_s in times:
        role: Role = (
            "warmup" if at_s < phase.warmup_s else "measured" if at_s < length - phase.cooldown_s else "cooldown"
        )
        # The requests before the schedule are warm-up too; they have the lower numbers.
        first = phase.warmup_requests if role == "warmup" else 0
        if role == "measured" and phase.requests is not None and counts[role] >= phase.requests:
            return
        yield role, first + counts[role], at_s
        counts[role] += 1


@contextlib.asynccontextmanager
async def _group() -> AsyncIterator[set[asyncio.Task[None]]]:
    """Tasks that end together: waited for when all is well, cancelled and waited for when it is not."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        yield tasks
        while tasks:
            done, _ = await asyncio.wait(set(tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                tasks.discard(task)
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
