"""Progress display: a live panel on a terminal, a line every 10 s elsewhere, or nothing."""

import asyncio
import contextlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmpod.loadtest.cli.dry_run import describe
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.report.console import sparkline
from llmpod.loadtest.run.guards import Guards
from llmpod.loadtest.run.probes import HealthWatch
from llmpod.loadtest.run.runner import Runner
from llmpod.loadtest.stats import nearest_rank
from llmpod.loadtest.units import show_duration, show_ms, show_usd

if TYPE_CHECKING:
    from llmpod.loadtest.cli.session import Setup

LINE_EVERY_S = 10.0
RECENT = 200


class Watching(ABC):
    """Looks at the run's tally at a steady pace; the subclasses say what they see."""

    every_s = LINE_EVERY_S

    def __init__(self, setup: "Setup", runner: Runner, health: HealthWatch, guards: Guards) -> None:
        self.setup, self.runner, self.health, self.guards = setup, runner, health, guards
        self.begun_s = monotonic()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            self.show()

    @abstractmethod
    def show(self) -> None:
        """Put the run's state where the user sees it."""

    def close(self) -> None:
        """Shows the last state."""
        with contextlib.suppress(OSError, ValueError):
            self.show()

    def recent(self) -> list[Job]:
        phase = self.runner.tally.phase
        name = phase.name if phase else None
        return [job for job in self.runner.tally.finished[-RECENT:] if job.phase == name and job.ok]

    def progress(self) -> tuple[int, int, int | None]:
        """(measured jobs of this phase that are done, failed among them, planned)."""
        phase = self.runner.tally.phase
        if phase is None:
            return 0, 0, None
        return self.runner.tally.done, self.runner.tally.failed, phase.planned_requests


def percentile_text(jobs: list[Job], name: str) -> str:
    values = sorted(value for job in jobs if (value := getattr(job, name)) is not None)
    if not values:
        return "n/a"
    return f"{show_ms(nearest_rank(values, 50))} / {show_ms(nearest_rank(values, 95))}"


class Plain(Watching):
    """One line every 10 s on stderr, so that stdout stays the report's."""

    def __init__(self, setup: "Setup", runner: Runner, health: HealthWatch, guards: Guards) -> None:
        super().__init__(setup, runner, health, guards)
        phases = "".join(f"  {describe(phase)}\n" for phase in setup.plan.phases)
        sys.stderr.write(f"testing {setup.base_url} by {setup.plan.mode}; results in {setup.directory}\n{phases}")

    def show(self) -> None:
        done, failed, planned = self.progress()
        phase = self.runner.tally.phase
        of = f" of {planned}" if planned is not None else ""
        jobs = self.recent()
        workers = f"  workers {self.health.live}" if self.health.live is not None else ""
        sys.stderr.write(
            f"{show_duration(monotonic() - self.begun_s):>8}  {phase.name if phase else '-'}  {done}{of} "
            f"done  {failed} failed  "
            f"{self.runner.tally.in_flight} in flight  p50/p95 total {percentile_text(jobs, 'total_ms')}  "
            f"delay {percentile_text(jobs, 'delay_ms')}  exec {percentile_text(jobs, 'exec_ms')}{workers}\n"
        )
        if self.health.deserted_s and self.health.alarm:
            sys.stderr.write(f"{'':>8}  ! {self.health.alarm}\n")


class Panel(Watching):
    """A few lines that renew themselves twice a second. Rendering costs milliseconds of the measuring loop: hence
    seldom."""

    every_s = 0.5

    def __init__(self, setup: "Setup", runner: Runner, health: HealthWatch, guards: Guards) -> None:
        super().__init__(setup, runner, health, guards)
        self._live = Live(console=Console(file=sys.stderr), auto_refresh=False, transient=True)
        self._live.start()

    def close(self) -> None:
        super().close()
        self._live.stop()

    def show(self) -> None:
        self._live.update(self.picture(), refresh=True)

    def picture(self) -> Group:
        tally = self.runner.tally
        done, failed, planned = self.progress()
        phase = tally.phase
        head = Text.assemble(
            (f"{phase.name if phase else 'starting'}", "bold"),
            f"  phase {tally.phase_number} of {len(self.setup.plan.phases)}  "
            f"{show_duration(monotonic() - self.begun_s)}  ",
            (self.setup.base_url, "dim"),
        )
        share = min(1.0, done / planned) if planned else self._time_share()
        bar = Text.assemble(
            ("█" * math.floor(share * 40), "green"), ("░" * (40 - math.floor(share * 40)), "dim"), f" {share:.0%}"
        )
        counts = Text.assemble(
            f"done {done}" + (f" of {planned}" if planned else "") + "  ",
            (f"failed {failed}", "bold red" if failed else "dim"),
            f"  in flight {tally.in_flight}",
            f"  spent {show_usd(self.guards.cost_usd)}" if self.guards.cost_usd is not None else "",
        )
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for name in ("last 200", "p50 / p95", ""):
            table.add_column(name)
        jobs = self.recent()
        for label, name in (("total", "total_ms"), ("delay", "delay_ms"), ("exec", "exec_ms"), ("ttft", "ttft_ms")):
            values: list[float | None] = [getattr(job, name) for job in jobs[-50:]]
            if any(value is not None for value in values):
                table.add_row(label, percentile_text(jobs, name), sparkline(values))
        parts: list[RenderableType] = [head, bar, counts, table]
        if self.health.samples:
            last = self.health.samples[-1]
            words = ", ".join(f"{count} {name}" for name, count in last["workers"].items() if count) or "none"
            queue = last["jobs"].get("inQueue")
            parts.append(Text(f"workers {words}" + (f"; {queue} in queue" if queue is not None else ""), style="cyan"))
        if self.health.deserted_s and self.health.alarm:
            parts.append(Text(f"! {self.health.alarm}", style="bold red"))
        return Group(*parts)

    def _time_share(self) -> float:
        tally = self.runner.tally
        length_s = tally.phase.duration_s if tally.phase else None
        if length_s is None or tally.first_ms is None or not tally.finished:
            return 0.0
        return max(0.0, min(1.0, ((tally.finished[-1].done_ms or 0.0) - tally.first_ms) / (length_s * 1000)))


@contextlib.contextmanager
def shown(setup: "Setup", runner: Runner, health: HealthWatch, guards: Guards) -> Iterator[None]:
    """Shows the progress meanwhile. auto: a panel where there is a terminal that can show one, else lines."""
    choice = "plain" if setup.options.no_tui else setup.options.ui
    if choice == "none" or setup.options.format == "quiet":
        yield
        return
    live = choice == "live" or (choice == "auto" and sys.stderr.isatty() and not setup.environment.plain)
    ui = (Panel if live else Plain)(setup, runner, health, guards)
    task = asyncio.get_running_loop().create_task(ui.watch())
    try:
        yield
    finally:
        task.cancel()
        ui.close()
