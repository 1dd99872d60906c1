"""Worker fleet: keeps as many processes running as the autoscaler asks for; reports ends to the pool."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Generic

from llmpod.endpoint.fleet.process import WorkerProcess
from llmpod.endpoint.fleet.process_guard import FREEZE, KILL, TERMINATE, THAW
from llmpod.endpoint.state.autoscaler import backoff_s
from llmpod.endpoint.state.fleet_worker import W, WorkerPool

THROTTLE_PERIOD_S = 0.1


class Fleet(Generic[W]):
    """Worker processes by worker id. `report` receives one line per event worth telling a person.

    A worker that has not started (`FleetWorker.started`) within `start_timeout_s` seconds is killed; `sign` names what
    it owed, as in "no job-take within 420 s".
    """

    def __init__(
        self,
        pool: WorkerPool[W],
        environment: Callable[[str], Mapping[str, str]],
        report: Callable[[str], None],
        on_log: Callable[[W, str], None],
        random: Random,
        *,
        sign: str,
        start_timeout_s: float,
    ) -> None:
        self.pool = pool
        self.options = pool.options
        self.workers_min = self.options.workers_min
        self.workers_max = self.options.workers_max
        self.processes: dict[str, WorkerProcess] = {}
        self.starts = 0
        self.crashes = 0
        self._environment = environment
        self._report = report
        self._on_log = on_log
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._asked: set[str] = set()
        self._why: dict[str, str] = {}
        self._crashes_in_a_row = 0
        self._not_before_s = 0.0
        self._closing = False
        self._sign = sign
        self._start_timeout_s = start_timeout_s

    # ------------------------------------------------------------------ the loop
    async def run(self) -> None:
        """Scales until cancelled."""
        last_s = dict.fromkeys(("kill", "freeze"), time.monotonic())
        while True:
            self.look()
            faults = self.pool.faults
            for what, every_s in (("kill", faults.kill_every_s), ("freeze", faults.freeze_every_s)):
                if every_s and time.monotonic() - last_s[what] < every_s:
                    continue
                last_s[what] = time.monotonic()
                if every_s:
                    self._strike(what)
            await asyncio.sleep(self.options.scale_period_s)

    def look(self) -> None:
        """One look of the scaler: starts what is missing, retires what is not needed."""
        if self._closing:
            return
        live = self._live()
        target = self.pool.target(live, self.workers_min, self.workers_max)
        if len(live) < target and time.monotonic() >= self._not_before_s:
            for _ in range(target - len(live)):
                self._start()
        for worker in self.pool.surplus(live, target, self.workers_min, self.workers_max):
            self.retire(worker, "not needed")

    def _live(self) -> list[W]:
        return [worker for worker in self.pool.workers.values() if worker.counted]

    # ------------------------------------------------------------------ one worker
    def _start(self) -> W:
        worker = self.pool.add(secrets.token_hex(7), owned=True)  # as long as RunPod's pod ids
        self.starts += 1
        task = asyncio.create_task(self._live_through(worker), name=f"worker {worker.id}")
        self._lives[worker.id] = task
        self._keep(task)
        return worker

    async def _live_through(self, worker: W) -> None:
        """A worker's life: wait for a machine, start cold, run, end; whatever happens, the pool learns of the end."""
        reason = "was stopped before it started"
        said = ""
        process: WorkerProcess | None = None
        try:
            await self._machine(worker)
            await asyncio.sleep(self.pool.faults.cold_start_s)
            if worker.draining:
                return
            process = await WorkerProcess.start(
                self.options.command,
                self.options.cwd,
                self._environment(worker.id),
                lambda line: self._log(worker, line),
            )
            self.processes[worker.id] = process
            self._report(f"worker {worker.id} started")
            overdue = asyncio.get_running_loop().call_later(self._start_timeout_s, self._check_started, worker)
            try:
                code = await process.wait()
            finally:
                overdue.cancel()
            worker.exit_code = code
            reason = f"exited with code {code}"
            said = self._account(worker, process, code)
        except OSError as error:
            reason = f"could not be started: {error}"
            self._count_crash(worker, reason)
        finally:
            if process is not None:
                process.order(KILL)
            self.processes.pop(worker.id, None)
            self._lives.pop(worker.id, None)
            self._asked.discard(worker.id)
            why = self._why.pop(worker.id, None)
            self.pool.lose(worker, ": ".join(part for part in (why, reason, said) if part))
            if not self._closing:
                self.look()

    async def _machine(self, worker: W) -> None:
        """Waits until one of the machines that can be had is free."""
        while not worker.draining:
            machines = self.pool.faults.machines
            others = [other for other in self.pool.workers.values() if other.owned and other is not worker]
            busy = sum(other.dead is None and not other.throttled for other in others)
            if machines is None or busy < machines:
                worker.throttled = False
                return
            worker.throttled = True
            await asyncio.sleep(THROTTLE_PERIOD_S)

    def _check_started(self, worker: W) -> None:
        if not worker.started and worker.dead is None:
            worker.unhealthy = f"no {self._sign} within {self._start_timeout_s:g} s"
            self.kill(worker.id, worker.unhealthy)

    def _account(self, worker: W, process: WorkerProcess, code: int) -> str:
        """Counts an end nobody asked for, and returns the last line it printed where that explains it."""
        if worker.id in self._asked or worker.draining:
            self._report(f"worker {worker.id} stopped")
            return ""
        said = process.last_error_line or process.last_line or "(it printed nothing)"
        if worker.done:
            self._crashes_in_a_row = 0
            self._report(f"worker {worker.id} exited with code {code}, having done {worker.done}")
        else:
            self._count_crash(worker, f"exited with code {code} after {process.age_s:.1f} s: {said}")
        return said[:200] if code else ""

    def _count_crash(self, worker: W, what: str) -> None:
        """A worker that ends without having done anything. Two in a row are a crash loop: the next start waits."""
        self.crashes += 1
        self._crashes_in_a_row += 1
        pause_s = backoff_s(self._crashes_in_a_row, self.options.crash_backoff_max_s)
        self._not_before_s = time.monotonic() + pause_s
        self._report(f"worker {worker.id} {what}; next start in {pause_s:g} s")

    def _log(self, worker: W, line: str) -> None:
        worker.logs.append(line)
        self._on_log(worker, line)

    # ------------------------------------------------------------------ ending workers
    def retire(self, worker: W, reason: str) -> None:
        """Takes a worker out of service: nothing more to do, SIGTERM, and SIGKILL after the grace period."""
        if not worker.owned or worker.draining:
            return
        self._asked.add(worker.id)
        worker.retired, self._why[worker.id] = True, reason
        self._report(f"worker {worker.id} is being stopped: {reason}")
        self.pool.drain(worker)
        self._keep(asyncio.create_task(self._retire(worker)))

    async def _retire(self, worker: W) -> None:
        life = self._lives.get(worker.id)
        if life is None:
            return
        process = self.processes.get(worker.id)
        if process is None:
            life.cancel()
            return
        process.order(TERMINATE)
        await asyncio.wait((life,), timeout=self.options.grace_s)
        if not life.done():
            self._report(f"worker {worker.id} did not leave within {self.options.grace_s:g} s: SIGKILL")
            process.order(KILL)

    def kill(self, worker_id: str, reason: str = "killed on request") -> bool:
        """SIGKILL at once, whatever it holds; not counted as a crash. False when there is no such process."""
        process = self.processes.get(worker_id)
        if process is None:
            return False
        self._asked.add(worker_id)
        self._why[worker_id] = reason
        self._report(f"worker {worker_id} is killed: {reason}")
        process.order(KILL)
        return True

    def _strike(self, what: str) -> None:
        """Kills or freezes a random worker that is up."""
        up = [worker.id for worker in self._live() if worker.started and worker.id in self.processes]
        if not up:
            return
        worker_id = self._random.choice(up)
        if what == "kill":
            self.kill(worker_id, "fault: kill_every_s")
        else:
            self._report(f"worker {worker_id} is frozen: fault: freeze_every_s")
            self.freeze(worker_id, frozen=True)

    def freeze(self, worker_id: str, *, frozen: bool) -> bool:
        """Stops or continues every process of a worker (SIGSTOP, SIGCONT). False when there is no such process."""
        process = self.processes.get(worker_id)
        if process is None:
            return False
        process.order(FREEZE if frozen else THAW)
        return True

    async def close(self) -> None:
        """SIGTERM to all, SIGKILL after the grace period; returns when every process is gone."""
        self._closing = True
        for worker in list(self.pool.workers.values()):
            if worker.owned and worker.dead is None:
                self.retire(worker, "the endpoint stops")
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def abort(self) -> None:
        """SIGKILL to all; returns when every process is gone."""
        self._closing = True
        for worker_id in list(self.processes):
            self._asked.add(worker_id)
            self.processes[worker_id].order(KILL)
        for worker_id, life in list(self._lives.items()):
            if worker_id not in self.processes:
                life.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            if error := task.exception():
                self._report(f"internal error in {task.get_name()}: {error!r}")
