"""Import of CSV files with the columns ok,status,latency_ms,tokens_generated as a run of the load tester.

    python tools/import_old_csv.py rp_results_1.csv --concurrency 1 4 8 [--cycle TIME] [--out DIR] [report options]

The rows are in the order of completion. What the file does not say is worked out where that is possible, and named
where it is not: the phases (given by --concurrency), when each request was sent (a client's next request follows its
last answer), which "successes" were none, and how many workers there were (N clients on m workers, each S seconds per
job, wait N*S/m: Little's law).
"""

import csv
import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from llmpod.loadtest.cli.main import guarded
from llmpod.loadtest.cli.publish import publish
from llmpod.loadtest.cli.viewing import make_view
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.flags import Duration, Levels, make_parser, option
from llmpod.loadtest.model import plan as plans
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase, Plan
from llmpod.loadtest.model.run_files import Recorded
from llmpod.loadtest.options import ViewOptions
from llmpod.loadtest.report.report import build
from llmpod.loadtest.stats import nearest_rank
from llmpod.loadtest.units import show_duration, show_ms

COLUMNS = ("ok", "status", "latency_ms", "tokens_generated")
# /runsync gives up waiting after 90 s and answers 200 with a job that is not done.
WAIT_MS = 90_000.0
LONG_RUN = 500


@dataclass(frozen=True, slots=True)
class OldRow:
    """A line of the CSV."""

    ok: bool
    status: int | None
    latency_ms: float | None
    tokens: int | None

    @property
    def wait_expired(self) -> bool:
        """HTTP 200 after the 90 s default wait, without a token: the old script counted it as a success."""
        no_tokens = self.tokens is None or self.tokens < 0
        return self.ok and no_tokens and self.latency_ms is not None and WAIT_MS <= self.latency_ms < WAIT_MS + 3000


@dataclass(frozen=True, slots=True)
class OldPhase:
    """One phase of an old file. `steady_*` leave out the first 2N jobs: the queue fills up, the first job wakes a
    worker."""

    name: str
    concurrency: int
    jobs: tuple[Job, ...]
    steady_p50_ms: float | None
    throughput_per_min: float | None

    def workers(self, cycle_ms: float) -> float | None:
        """N*S/latency. Meaningless when there were at least as many workers as clients: then it says N."""
        return self.concurrency * cycle_ms / self.steady_p50_ms if self.steady_p50_ms else None


def read_rows(path: Path) -> list[OldRow]:
    """The lines of a file. Raises UsageError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UsageError(f"{path} cannot be imported: it has no column {', '.join(missing)}")
            rows = [_row(row, path, reader.line_num) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise UsageError(f"{path} has no rows")
    return rows


def _row(row: dict[str, str], path: Path, line: int) -> OldRow:
    def number(name: str) -> float | None:
        text = row.get(name)
        if text is None or text.strip() in ("", "None"):
            return None
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(name)
        return value

    try:
        status, tokens = number("status"), number("tokens_generated")
        return OldRow(
            row.get("ok", "").strip().lower() == "true",
            int(status) if status is not None else None,
            number("latency_ms"),
            int(tokens) if tokens is not None else None,
        )
    except ValueError:
        raise UsageError(f"{path} line {line}: a value is not a number") from None


def split(rows: Sequence[OldRow], levels: Sequence[int], path: Path) -> list[tuple[int, Sequence[OldRow]]]:
    """The old script ran its levels one after the other, the same number of requests each, and marked no border."""
    if len(rows) % len(levels):
        raise UsageError(
            f"{path} has {len(rows)} rows, which {len(levels)} phases of equal length cannot have; check --concurrency"
        )
    size = len(rows) // len(levels)
    return [(level, rows[number * size : (number + 1) * size]) for number, level in enumerate(levels)]


def rebuild(name: str, level: int, rows: Sequence[OldRow], start_ms: float) -> OldPhase:
    """Rows in completion order become jobs with times: the client that has waited longest is the one that was
    answered."""
    sent = [start_ms] * level
    heapq.heapify(sent)
    jobs = []
    for index, row in enumerate(rows):
        job = Job(name, index, "warmup" if index < 2 * level else "measured", "runsync")
        job.sent_ms = heapq.heappop(sent)
        job.total_ms = row.latency_ms
        job.done_ms = job.sent_ms + (row.latency_ms or 0.0)
        heapq.heappush(sent, job.done_ms)
        job.http_status = row.status
        job.output_tokens = row.tokens if row.tokens is not None and row.tokens >= 0 else None
        job.ok = row.ok and not row.wait_expired
        if row.wait_expired:
            job.fail(
                "wait_expired",
                f"HTTP 200 after {show_ms(row.latency_ms)} without a token: the job was still in the queue",
            )
        elif not row.ok:
            job.fail("submit_5xx" if (row.status or 0) >= 500 else "job_failed", f"HTTP {row.status}")
        jobs.append(job)
    steady = sorted(job.total_ms for job in jobs if job.role == "measured" and job.ok and job.total_ms is not None)
    p50 = nearest_rank(steady, 50) if steady else None
    return OldPhase(name, level, tuple(jobs), p50, level / p50 * 60_000 if p50 else None)


def import_files(paths: Sequence[Path], levels: Sequence[int]) -> list[OldPhase]:
    """All phases of all files on one time axis. Raises UsageError."""
    phases: list[OldPhase] = []
    at_ms = 0.0
    for path in paths:
        for level, rows in split(read_rows(path), levels, path):
            label = f"c={level}" if len(paths) == 1 else f"{path.stem.removeprefix('rp_results_')} c={level}"
            taken = sum(1 for phase in phases if phase.name.split(" (")[0] == label)
            phase = rebuild(label if not taken else f"{label} ({taken + 1})", level, rows, at_ms)
            phases.append(phase)
            at_ms = max((job.done_ms or 0.0 for job in phase.jobs), default=at_ms)
    return phases


def cycle_ms(phases: Sequence[OldPhase]) -> float | None:
    """What one worker takes per job, dead time included: the steady latency of a single client. None without such a
    phase."""
    alone = sorted(phase.steady_p50_ms for phase in phases if phase.concurrency == 1 and phase.steady_p50_ms)
    return nearest_rank(alone, 50) if alone else None


def story(phases: Sequence[OldPhase], cycle: float | None) -> list[str]:
    """Corrections of the figures that were read from these files, per phase."""
    out = []
    for phase in phases:
        expired = sum(1 for job in phase.jobs if job.error_class == "wait_expired")
        if expired:
            out.append(
                f"{phase.name}: {expired} of {len(phase.jobs)} 'successes' is a /runsync wait that expired "
                f"after 90 s; the job was left behind"
            )
        totals = sorted(job.total_ms for job in phase.jobs if job.total_ms is not None)
        if not totals or phase.steady_p50_ms is None:
            continue
        if len(phase.jobs) >= LONG_RUN:
            out.append(_regimes(phase))
            continue
        words = (
            f"{phase.name}: steady p50 {show_ms(phase.steady_p50_ms)} (the old script's p50 was "
            f"{show_ms(nearest_rank(totals, 50))})"
        )
        workers = phase.workers(cycle) if cycle else None
        if workers is not None and cycle is not None:
            count = max(1, round(workers))
            words += (
                f" = {phase.concurrency} x {show_ms(cycle)} / {workers:.2f}: {count} worker{'s' if count > 1 else ''}"
            )
            words += ", at least" if count >= phase.concurrency > 1 else ""
            words += " at most: the number changed during the phase" if abs(workers - round(workers)) > 0.2 else ""
        out.append(f"{words}; {phase.throughput_per_min:.1f} jobs/min")
    if cycle is not None:
        out.append(
            f"one worker takes {show_ms(cycle)} per job, dead time included: {60_000 / cycle:.1f} jobs/min per worker"
        )
    else:
        out.append("how many workers there were is not in these files: import a c=1 phase with them, or pass --cycle")
    return out


def _regimes(phase: OldPhase) -> str:
    """A long run's two states: minutes with the slow one."""
    middle = math.sqrt(_percentile(phase, 10) * _percentile(phase, 90))
    slow_ms = sum(job.total_ms or 0.0 for job in phase.jobs if (job.total_ms or 0.0) > middle) / phase.concurrency
    whole_ms = sum(job.total_ms or 0.0 for job in phase.jobs) / phase.concurrency
    if _percentile(phase, 90) < 1.6 * _percentile(phase, 10):
        return f"{phase.name}: one state for {show_duration(whole_ms / 1000)}"
    return (
        f"{phase.name}: two states: {slow_ms / 60_000:.1f} of {whole_ms / 60_000:.1f} min at about "
        f"{show_ms(_percentile(phase, 90))}, "
        f"the rest at {show_ms(_percentile(phase, 10))}: half of the workers were missing, and no "
        f"percentile of the whole describes either"
    )


def _percentile(phase: OldPhase, p: float) -> float:
    return nearest_rank(sorted(job.total_ms for job in phase.jobs if job.total_ms is not None), p)


@dataclass(kw_only=True)
class ImportOptions(ViewOptions):
    """Imports CSVs (ok,status,latency_ms,tokens_generated) as a run and reports on it."""

    files: list[str] = option(default=[], nargs="+", metavar="FILE", positional=True)
    concurrency: list[Levels] | None = option("of each phase: the CSV does not say", "-c", nargs="+")
    cycle: Duration | None = option("what one worker takes per job; default: the c=1 phases' p50")


def main(argv: Sequence[str] | None = None) -> int:
    """Imports, reports, and returns the exit code of the report."""
    parser = make_parser(ImportOptions, "tools/import_old_csv.py")
    return guarded(lambda environment: import_and_report(parser.parse_args(argv, ImportOptions()), environment))


def import_and_report(chosen: ImportOptions, environment: Environment) -> Exit:
    """Writes the run's directory and its report. Raises UsageError."""
    levels = [level for group in chosen.concurrency or [] for level in group]
    if not levels:
        raise UsageError("--concurrency is needed: the CSV does not say how many clients there were")
    paths = [Path(name) for name in chosen.files]
    phases = import_files(paths, levels)
    directory = Path(chosen.out) if chosen.out else Path("runs") / f"legacy-{paths[0].stem.removeprefix('rp_results_')}"
    if (directory / run_files.PLAN).exists() and not run_files.read(directory).plan.get("imported"):
        raise UsageError(f"{directory} already holds a run; pass another --out")
    cycle = chosen.cycle * 1000 if chosen.cycle else cycle_ms(phases)
    made = write_run(directory, phases, paths, story(phases, cycle))
    return publish(build(made, make_view(chosen)), made, directory, chosen, environment)


def write_run(directory: Path, phases: Sequence[OldPhase], paths: Sequence[Path], notes: Sequence[str]) -> Recorded:
    """A results directory like any other, so that report and compare read it later."""
    run_files.make_directory(directory)
    for name in (run_files.REQUESTS, run_files.EVENTS, run_files.HEALTH):
        (directory / name).unlink(missing_ok=True)
    plan = Plan(
        tuple(
            Phase(
                name=phase.name,
                kind="closed",
                shape="soak" if len(phase.jobs) >= LONG_RUN else "closed",
                concurrency=phase.concurrency,
                requests=sum(1 for job in phase.jobs if job.role == "measured"),
                warmup_requests=min(2 * phase.concurrency, len(phase.jobs)),
                workers_may_change=True,
            )
            for phase in phases
        ),
        "runsync",
        0,
    )
    meta = {
        "endpoint": f"imported from {', '.join(path.name for path in paths)}",
        "times": "rebuilt: the old CSV has none",
    }
    facts = {"format": run_files.FORMAT, "meta": meta, "plan": plans.to_dict(plan), "imported": True}
    run_files.write_json(directory / run_files.PLAN, facts)
    log = run_files.Journal(directory)
    for phase in phases:
        for job in phase.jobs:
            log.request(job)
    log.event("imported", 0.0, notes=notes)
    log.close()
    return run_files.read(directory)


if __name__ == "__main__":
    sys.exit(main())
