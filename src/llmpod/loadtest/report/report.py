"""Report of a whole run, built from its directory, and its JSON form (run.json)."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmpod.loadtest.analysis.analyse import analyse
from llmpod.loadtest.analysis.phase import PhaseReport, View
from llmpod.loadtest.analysis.sweep import Answer
from llmpod.loadtest.analysis.sweep import answer as sweep_answer
from llmpod.loadtest.errors import Exit
from llmpod.loadtest.model import plan as plans
from llmpod.loadtest.model.job_record import grouped
from llmpod.loadtest.model.plan import Plan
from llmpod.loadtest.model.run_files import FORMAT, Recorded
from llmpod.loadtest.run.guards import HOPELESS
from llmpod.loadtest.units import count

METHODS = {
    "clock": "monotonic (perf_counter); timestamps are UTC",
    "percentiles": "nearest rank, over successful measured jobs",
    "adjusted percentiles": "the same with every failed job counted as infinitely slow; objectives are judged on these",
    "intervals": "95 %, distribution-free, from order statistics; below 100 jobs, and where neighbours depend on each "
    "other, as wide as those of n_eff independent samples times (1.96 / Student's t of the correlation time's degrees "
    "of freedom) squared; near the least n_eff wider still",
    "n_eff": "of a percentile: n divided by the correlation time of being above it, from the spectrum at frequency 0; "
    "of a row: the least of its percentiles'",
    "starts": "a worker's first job, or one sent while no worker was live, is cold if it waited 10 s longer than the "
    "median of the other jobs, a wake if 0.5 s; all others are warm",
    "polled totals": "clamp(rtt_min + delayTime + executionTime) between the last unfinished poll sent and "
    "the final one received",
    "closed loop": "its numbers hold for that many clients; they are not those of an arrival rate",
}


@dataclass(frozen=True, slots=True)
class Report:
    meta: dict[str, Any]
    plan: Plan
    phases: tuple[PhaseReport, ...]
    notes: tuple[str, ...]
    stopped: str | None
    exit_code: Exit
    answer: Answer | None = None  # of a sweep

    @property
    def header(self) -> list[str]:
        """What was tested, how and when; an import knows neither seed nor time."""
        known = [str(self.meta.get("endpoint", "")), f"mode {self.plan.mode}"]
        if "started_at" in self.meta:
            known += [f"seed {self.plan.seed}", str(self.meta["started_at"])]
        return known

    @property
    def valid(self) -> bool:
        return all(phase.valid for phase in self.phases)


def build(recorded: Recorded, view: View) -> Report:
    """Reads no clock and no network: the same directory and the same view give the same report."""
    plan = plans.from_dict(recorded.plan["plan"])
    by_phase = grouped(recorded.jobs, lambda job: job.phase)
    client: dict[str, dict[str, Any]] = {}
    stop: dict[str, Any] | None = None
    going_on = False
    notes: list[str] = []
    for event in recorded.events:
        notes += map(str, event.get("notes", ()))
        if event.get("event") == "phase_ended" and isinstance(event.get("client"), dict):
            client[str(event.get("phase"))] = event["client"]
        elif event.get("event") == "stopped":
            stop = event
        elif event.get("event") == "session_started":
            stop, going_on = None, True
        elif event.get("event") == "session_ended":
            going_on = False
    if going_on:
        stop = stop or {"reason": "the run was killed, or still goes on", "exit_code": Exit.INTERRUPTED}
    phases = tuple(
        analyse(phase, by_phase[phase.name], recorded.jobs, recorded.health, client.get(phase.name, {}), view)
        for phase in plan.phases
        if phase.name in by_phase
    )
    if recorded.unreadable:
        lines = count(recorded.unreadable, "unreadable line")
        were = "was" if recorded.unreadable == 1 else "were"
        notes.append(f"{lines} {were} passed over (the end of a run that crashed leaves one)")
    if recorded.orphans:
        notes.append(
            f"accepted jobs without an end on record: {len(recorded.orphans)}; `resume` cancels them and goes on"
        )
    never = [phase.name for phase in plan.phases if phase.name not in by_phase]
    if never and plan.sweep is None:
        notes.append(f"phases that did not run: {', '.join(never)}")
    answer = sweep_answer(plan.sweep, phases) if plan.sweep is not None else None
    reason = str(stop["reason"]) if stop else None
    forced = _exit(stop.get("exit_code")) if stop else None
    return Report(
        meta=dict(recorded.plan.get("meta", {})),
        plan=plan,
        phases=phases,
        notes=tuple(dict.fromkeys(notes)),
        stopped=reason,
        exit_code=exit_code(phases, forced, answer),
        answer=answer,
    )


def exit_code(phases: Sequence[PhaseReport], forced: Exit | None, answer: Answer | None = None) -> Exit:
    """A stop's own code comes first; then a phase without a result, an invalid measurement, failed objectives. A sweep
    climbs until an objective or all jobs fail: it has failed when not even its first rung holds."""
    if forced is not None:
        return forced
    empty = [phase for phase in phases if without_result(phase)]
    if len(empty) == len(phases) or (empty and answer is None):
        return Exit.ERROR
    if any(not phase.valid for phase in phases):
        return Exit.INVALID
    if answer is not None:
        return Exit.PASS if answer.best is not None else Exit.SLO_FAILED
    if any(not verdict.passed for phase in phases for verdict in phase.verdicts):
        return Exit.SLO_FAILED
    return Exit.PASS


def without_result(phase: PhaseReport) -> bool:
    """Whether no job of a phase succeeded, and no objective is about that: one that was missed tells it by its own exit
    code, and one on the error rate may ask for it."""
    if phase.ok or phase.outcomes.get("blocked"):
        return False
    if not phase.counted or {failure.error_class for failure in phase.failures} <= HOPELESS:
        return True
    missed = any(not verdict.passed for verdict in phase.verdicts)
    asked = any(verdict.slo.name in ("error_rate", "success_rate") for verdict in phase.verdicts)
    return not missed and not asked


def _exit(value: Any) -> Exit:
    try:
        return Exit(int(value))
    except (TypeError, ValueError):
        return Exit.ERROR


def to_json(report: Report) -> dict[str, Any]:
    """run.json: durations in ms, infinity (a percentile that failures reach) as the string "inf"."""
    return {
        "format": FORMAT,
        "exit_code": int(report.exit_code),
        "verdict": report.exit_code.name.lower(),
        "valid": report.valid,
        "stopped": report.stopped,
        "meta": report.meta,
        "methods": METHODS,
        "notes": list(report.notes),
        "answer": dataclasses.asdict(report.answer) if report.answer is not None else None,
        "phases": [_phase_json(phase) for phase in report.phases],
    }


def _phase_json(phase: PhaseReport) -> dict[str, Any]:
    data: dict[str, Any] = _plain(dataclasses.asdict(phase))
    data["phase"].pop("replay_s", None)
    data["valid"] = phase.valid
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "inf" if math.isinf(value) else None if math.isnan(value) else round(value, 6)
    return value
