"""Session: one run from its options to its report (set-up, run, clean-up, reading back, publishing)."""

import asyncio
import contextlib
import dataclasses
import gc
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from llmpod.loadtest.analysis.analyse import analyse
from llmpod.loadtest.analysis.phase import PhaseReport, View
from llmpod.loadtest.analysis.sweep import climb
from llmpod.loadtest.cli import dry_run
from llmpod.loadtest.cli.planning import make_plan
from llmpod.loadtest.cli.progress import shown
from llmpod.loadtest.cli.publish import publish
from llmpod.loadtest.cli.target import made_by, resolve
from llmpod.loadtest.cli.viewing import check_measurable, make_view
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, LoadTestError, UsageError
from llmpod.loadtest.model import plan as plans
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase, Plan
from llmpod.loadtest.model.run_files import Journal, Recorded
from llmpod.loadtest.options import ResumeOptions, RunOptions
from llmpod.loadtest.report.report import build
from llmpod.loadtest.run.client import connected
from llmpod.loadtest.run.context import Clock, RunContext
from llmpod.loadtest.run.guards import Guards, Stop
from llmpod.loadtest.run.payload import Payloads
from llmpod.loadtest.run.polling import PollPace
from llmpod.loadtest.run.probes import HealthWatch
from llmpod.loadtest.run.runner import Runner
from llmpod.loadtest.units import utc_now

MIN_JUDGED = 20


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a run needs to know, in one place and checked."""

    options: RunOptions
    environment: Environment
    base_url: str
    plan: Plan
    view: View
    directory: Path


async def run(options: RunOptions, environment: Environment) -> Exit:
    """Sends the planned load, and reports on it."""
    plan = make_plan(options)
    view = make_view(options)
    check_measurable(view.slos, view.goodput, plan.mode, all(phase.kind == "closed" for phase in plan.phases))
    if options.max_cost is not None and options.gpu_price is None:
        raise UsageError("--max-cost needs --gpu-price, the price of one worker per hour")
    if options.abort_on_fail and not view.slos:
        raise UsageError("--abort-on-fail needs an --slo or --slo-preset")
    base_url = resolve(options, environment)
    payloads = Payloads(options)
    if options.dry_run:
        sys.stdout.write("\n".join(dry_run.lines(plan, view, base_url, payloads, options)) + "\n")
        return Exit.PASS
    directory = Path(options.out) if options.out else Path("runs") / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if (directory / run_files.PLAN).exists():
        raise UsageError(
            f"{directory} already holds a run; `resume {directory}` goes on with it, another --out starts a new one"
        )
    facts = {
        "format": run_files.FORMAT,
        "meta": made_by(options, base_url),
        "plan": plans.to_dict(plan),
        "options": vars(options),
    }
    run_files.make_directory(directory)
    run_files.write_redacted(directory / run_files.PLAN, facts, environment.api_key)
    setup = Setup(options, environment, base_url, plan, view, directory)
    return await _execute(setup, payloads, before=None)


async def resume(chosen: ResumeOptions, environment: Environment) -> Exit:
    """Goes on with the plan on disk: same phases, same schedules, same prompts; what is done is not done again."""
    directory = Path(chosen.directory)
    recorded = run_files.read(directory)
    saved = recorded.plan.get("options")
    if not isinstance(saved, dict):
        raise UsageError(
            f"{directory / run_files.PLAN} has no options: it is an imported report, and cannot be resumed"
        )
    known = {one.name for one in dataclasses.fields(RunOptions)}
    options = RunOptions(**{name: value for name, value in saved.items() if name in known})
    options.ui, options.csv = chosen.ui, None
    plan = plans.from_dict(recorded.plan["plan"])
    setup = Setup(options, environment, resolve(options, environment), plan, make_view(options), directory)
    return await _execute(setup, Payloads(options), before=recorded)


async def _execute(setup: Setup, payloads: Payloads, before: Recorded | None) -> Exit:
    options = setup.options
    log = Journal(setup.directory)
    clock = Clock(_last_ms(before) if before else 0.0)
    log.event("session_started", clock.now_ms(), at=utc_now(), resumed=before is not None)
    notes: list[str] = []
    try:
        async with connected(setup.base_url, setup.environment.api_key, options.limits) as client:
            context = RunContext(client, clock, log, options, PollPace(options.poll_interval))
            if before is not None and before.orphans:
                done = await asyncio.gather(*(context.cancel(job_id) for job_id in before.orphans))
                notes.append(
                    f"{sum(done)} of {len(before.orphans)} jobs that the earlier session left behind were cancelled"
                )
            # A load balancer has no /health: the path is the worker's, and asking would be a request of its own.
            health = HealthWatch(context, 0.0 if setup.plan.mode == "http" else options.health_interval)
            guards = Guards(
                worker_s=lambda: health.worker_s,
                alarm=lambda: health.alarm if health.deserted_s else None,
                max_cost_usd=options.max_cost,
                usd_per_s=options.gpu_price / 3600 if options.gpu_price else None,
                max_error_rate=options.max_error_rate,
            )
            judge = _Judge(setup, health, before.health if before else [])
            runner = Runner(
                context,
                setup.plan,
                payloads,
                guards,
                health,
                already=before.jobs if before else (),
                check=judge.check if options.abort_on_fail else lambda _phase, _jobs: None,
                climb=judge.climb if setup.plan.sweep else lambda _phase, _jobs: None,
            )
            gc.collect()
            gc.freeze()  # what exists now lives as long as the run: the collector need not look at it again
            with signals(runner), shown(setup, runner, health, guards):
                await run_to_end(runner, notes)
            notes += runner.tally.notes
            notes += [
                f"RunPod's limit on {name} held {gate.waited} of {gate.requests} requests back "
                f"({gate.waited_s:.1f} s in all)"
                for name, gate in client.gates.items()
                if gate.waited
            ]
            if health.alarm and not (runner.stopped and health.alarm in runner.stopped.reason):
                notes.append(health.alarm)
            if health.unanswered:
                looks = len(health.samples) + health.unanswered
                notes.append(f"/health gave no worker counts {health.unanswered} of {looks} times ({health.problem})")
    finally:
        log.event("session_ended", clock.now_ms(), at=utc_now(), notes=notes)
        log.close()
    recorded = run_files.read(setup.directory)
    return publish(build(recorded, setup.view), recorded, setup.directory, options, setup.environment)


async def run_to_end(runner: Runner, notes: list[str]) -> None:
    """Runs to the end, whatever end that is: what was measured until then is reported."""
    try:
        await runner.run()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if runner.stopped is None or task is None:
            raise
        task.uncancel()  # the second Ctrl-C: it was meant for the clean-up, which it ended
        notes.append("the clean-up was cut short: jobs may still be running on the endpoint")
    except Exception as error:  # noqa: BLE001 - what was measured until then is kept
        with contextlib.suppress(LoadTestError):
            runner.stop(Stop(f"the run broke off: {type(error).__name__}: {error}", Exit.ERROR))
        notes.append(f"the run broke off: {type(error).__name__}")


def _last_ms(before: Recorded) -> float:
    times = [job.done_ms or 0.0 for job in before.jobs] + [float(event.get("t_ms") or 0.0) for event in before.events]
    return max(times, default=0.0)


class _Judge:
    """Looks at the objectives while the run goes on, seldom enough not to disturb it."""

    def __init__(self, setup: Setup, health: HealthWatch, earlier: list[dict[str, Any]]) -> None:
        self._setup, self._health, self._earlier = setup, health, earlier
        self._next_s = 0.0
        self._rungs: list[PhaseReport] = []

    def check(self, phase: Phase, finished: list[Job]) -> Stop | None:
        """--abort-on-fail: a Stop once an objective fails on at least 20 measured jobs of the phase."""
        now = monotonic()
        if now < self._next_s:
            return None
        mine = [job for job in finished if job.phase == phase.name]
        if sum(1 for job in mine if job.counts) < MIN_JUDGED:
            return None
        report = self._analyse(phase, mine)
        self._next_s = monotonic() + max(1.0, 20 * (monotonic() - now))
        failed = [verdict for verdict in report.verdicts if not verdict.passed]
        if not failed:
            return None
        text = f"--abort-on-fail: {failed[0].slo.text} measured {failed[0].shown} in phase {phase.name}"
        return Stop(text, Exit.ABORTED)

    def climb(self, phase: Phase, finished: list[Job]) -> str | None:
        """A reason to stop the sweep after this rung, or None."""
        mine = [job for job in finished if job.phase == phase.name]
        self._rungs.append(self._analyse(phase, mine))
        over = climb(self._setup.plan.sweep, self._rungs) if self._setup.plan.sweep else None
        return f"the sweep ended at {phase.name}: {over.reason}" if over else None

    def _analyse(self, phase: Phase, jobs: list[Job]) -> PhaseReport:
        return analyse(phase, jobs, jobs, [*self._earlier, *self._health.samples], {}, self._setup.view)


@contextlib.contextmanager
def signals(runner: Runner) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) ends the run in order; a second one ends the clean-up too."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def on_signal(name: str) -> None:
        if runner.stopped is not None and runner.stopped.exit_code is Exit.INTERRUPTED and task is not None:
            task.cancel()
        sys.stderr.write(f"\n{name}: stopping; {runner.left()}; the report follows\n")
        runner.stop(Stop(f"interrupted by {name}", Exit.INTERRUPTED))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, signal.Signals(number).name)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
