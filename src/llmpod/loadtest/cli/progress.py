"""Progress display: a live panel on a terminal, a line every 10 s elsewhere, or nothing."""

import asyncio
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from llmpod.loadtest.cli.dry_run import describe
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.report.console import plain_table, sparkline
from llmpod.loadtest.run.guards import Guards
from llmpod.loadtest.run.probes import HealthWatch
from llmpod.loadtest.run.runner import Runner
from llmpod.loadtest.stats import ranked
from llmpod.loadtest.units import show_duration, show_ms, show_usd

if TYPE_CHECKING:
    from llmpod.loadtest.cli.session import Setup

LINE_EVERY_S = 10.0
# Rendering costs milliseconds of the measuring loop: hence seldom.
PANEL_EVERY_S = 0.5
RECENT = 200


@dataclass(slots=True)
class Progress:
    """The state of a run, as a line and as a panel."""

    setup: "Setup"
    runner: Runner
    health: HealthWatch
    guards: Guards
    begun_s: float = field(default_factory=monotonic)

    @property
    def spent(self) -> str:
        return show_duration(monotonic() - self.begun_s)

    @property
    def alarm(self) -> str | None:
        return self.health.alarm if self.health.deserted_s else None

    def recent(self) -> list[Job]:
        tally = self.runner.tally
        return [job for job in tally.finished[-RECENT:] if tally.phase and job.phase == tally.phase.name and job.ok]

    def done(self) -> str:
        tally = self.runner.tally
        planned = tally.phase.planned_requests if tally.phase else None
        return f"{tally.done}" + (f" of {planned}" if planned is not None else "")

    def line(self) -> str:
        tally, jobs = self.runner.tally, self.recent()
        workers = f"  workers {self.health.live}" if self.health.live is not None else ""
        alarm = f"{'':>8}  ! {self.alarm}\n" if self.alarm else ""
        return (
            f"{self.spent:>8}  {tally.phase.name if tally.phase else '-'}  {self.done()} "
            f"done  {tally.failed} failed  "
            f"{tally.in_flight} in flight  p50/p95 total {percentile_text(jobs, 'total_ms')}  "
            f"delay {percentile_text(jobs, 'delay_ms')}  exec {percentile_text(jobs, 'exec_ms')}{workers}\n{alarm}"
        )

    def panel(self) -> Group:
        tally, jobs, filled = self.runner.tally, self.recent(), math.floor(self._share() * 40)
        table = plain_table("last 200", "p50 / p95", "", left=("last 200", "p50 / p95", ""))
        for name in ("total", "delay", "exec", "ttft"):
            values: list[float | None] = [getattr(job, f"{name}_ms") for job in jobs[-50:]]
            if any(value is not None for value in values):
                table.add_row(name, percentile_text(jobs, f"{name}_ms"), sparkline(values))
        parts: list[RenderableType] = [
            Text.assemble(
                (tally.phase.name if tally.phase else "starting", "bold"),
                f"  phase {tally.phase_number} of {len(self.setup.plan.phases)}  {self.spent}  ",
                (self.setup.base_url, "dim"),
            ),
            Text.assemble(("█" * filled, "green"), ("░" * (40 - filled), "dim"), f" {self._share():.0%}"),
            Text.assemble(
                f"done {self.done()}  ",
                (f"failed {tally.failed}", "bold red" if tally.failed else "dim"),
                f"  in flight {tally.in_flight}",
                f"  spent {show_usd(self.guards.cost_usd)}" if self.guards.cost_usd is not None else "",
            ),
            table,
        ]
        if self.health.samples:
            last = self.health.samples[-1]
            words = ", ".join(f"{count} {name}" for name, count in last["workers"].items() if count) or "none"
            queue = last["jobs"].get("inQueue")
            parts.append(Text(f"workers {words}" + (f"; {queue} in queue" if queue is not None else ""), style="cyan"))
        if self.alarm:
            parts.append(Text(f"! {self.alarm}", style="bold red"))
        return Group(*parts)

    def _share(self) -> float:
        """How much of the phase is done, by its number of requests or else by its time."""
        tally = self.runner.tally
        if tally.phase and tally.phase.planned_requests:
            return min(1.0, tally.done / tally.phase.planned_requests)
        length_s = tally.phase.duration_s if tally.phase else None
        if length_s is None or tally.first_ms is None or not tally.finished:
            return 0.0
        return max(0.0, min(1.0, ((tally.finished[-1].done_ms or 0.0) - tally.first_ms) / (length_s * 1000)))


def percentile_text(jobs: list[Job], name: str) -> str:
    p50, p95 = ranked((getattr(job, name) for job in jobs), 50, 95)
    return "n/a" if p50 is None else f"{show_ms(p50)} / {show_ms(p95)}"


@contextlib.contextmanager
def shown(setup: "Setup", runner: Runner, health: HealthWatch, guards: Guards) -> Iterator[None]:
    """Shows the progress meanwhile. auto: a panel where there is a terminal that can show one, else lines on stderr, so
    that stdout stays the report's."""
    choice = setup.options.ui
    if choice == "none" or setup.options.format == "quiet":
        yield
        return
    progress = Progress(setup, runner, health, guards)
    show: Callable[[], object]
    with contextlib.ExitStack() as screen:
        if choice == "live" or (choice == "auto" and sys.stderr.isatty() and not setup.environment.plain):
            console = Console(file=sys.stderr)
            live = screen.enter_context(Live(console=console, auto_refresh=False, transient=True))
            every_s, show = PANEL_EVERY_S, lambda: live.update(progress.panel(), refresh=True)
        else:
            phases = "".join(f"  {describe(phase)}\n" for phase in setup.plan.phases)
            sys.stderr.write(f"testing {setup.base_url} by {setup.plan.mode}; results in {setup.directory}\n{phases}")
            every_s, show = LINE_EVERY_S, lambda: sys.stderr.write(progress.line())
        task = asyncio.create_task(_repeat(every_s, show))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(OSError, ValueError):
                show()  # the last state


async def _repeat(every_s: float, show: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(every_s)
        show()
