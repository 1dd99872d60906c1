"""Sweep: the next load to try, and the highest load that meets the objectives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmpod.loadtest.analysis.phase import PhaseReport
from llmpod.loadtest.analysis.stretches import BATCHES
from llmpod.loadtest.model.plan import Sweep
from llmpod.loadtest.stats import student
from llmpod.loadtest.units import show_rate

# A further rung that brings less than this much more throughput is not worth its latency.
GAIN = 1.05
BEHIND = 0.95


@dataclass(frozen=True, slots=True)
class Answer:
    """`best`: the phase that is the answer; None when not even the first rung holds. `certain`: the intervals say so
    too. `text` is the answer in one line."""

    best: str | None
    throughput_per_s: float | None
    certain: bool
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """Why a sweep ends: `knee` (a further rung brings nothing), `missed` (an objective) or `behind` (the endpoint does
    not keep up with the rate)."""

    kind: str
    reason: str
    certain: bool


def end(sweep: Sweep, before: PhaseReport | None, now: PhaseReport) -> End | None:
    """Whether the climb ends with the rung `now`; `before` is the one below it with the most throughput."""
    failed = [verdict for verdict in now.verdicts if not verdict.passed]
    if failed:
        return End("missed", f"{failed[0].slo.text} measured {failed[0].shown}", failed[0].unsure is None)
    if now.counted and not now.ok:
        return End("missed", "no job succeeded", certain=True)
    if now.throughput_per_s is None:
        return None
    asked = now.achieved_per_s if sweep.by_rate else None
    if asked is not None and now.throughput_per_s < BEHIND * asked:
        error = now.throughput_error
        sure = error is not None and now.throughput_per_s * (1 + student(0.05, BATCHES - 1) * error) < asked
        if sure:
            done = f"{show_rate(now.throughput_per_s)} of {show_rate(asked)}"
            return End("behind", f"{done} asked was answered: the queue grows", certain=True)
    if sweep.by_rate or not sweep.auto or before is None or before.throughput_per_s is None:
        return None
    gain = now.throughput_per_s / before.throughput_per_s
    proportional = now.phase.concurrency / before.phase.concurrency
    low, high = gain_interval(before, now)
    # For sure: less than half of what so many more clients would bring if each brought its share.
    certain = high - 1 < (proportional - 1) / 2
    if gain >= GAIN and not certain:
        return None
    words = (
        f"{now.phase.name} brings {show_rate(now.throughput_per_s)} after {show_rate(before.throughput_per_s)} "
        f"({_percent(low)} to {_percent(high)} %)"
    )
    return End("knee", words, certain=certain)


def gain_interval(before: PhaseReport, now: PhaseReport) -> tuple[float, float]:
    """A 95 % interval of the ratio of two throughputs, from their batches; without limits where one has too few."""
    gain = (now.throughput_per_s or 0.0) / (before.throughput_per_s or 1.0)
    if before.throughput_error is None or now.throughput_error is None:
        return 0.0, math.inf
    reach = math.exp(student(0.05, BATCHES - 1) * math.hypot(before.throughput_error, now.throughput_error))
    return gain / reach, gain * reach


def climb(sweep: Sweep, reports: Sequence[PhaseReport]) -> End | None:
    """Whether the last of these rungs ends the sweep."""
    *below, now = reports
    best = max(below, key=lambda one: one.throughput_per_s or 0.0, default=None)
    return end(sweep, best, now)


def answer(sweep: Sweep, reports: Sequence[PhaseReport]) -> Answer:
    """Result of the rungs that ran. Where none failed, it is the highest that was tried."""
    for number in range(len(reports)):
        over = climb(sweep, reports[: number + 1])
        if over is None:
            continue
        here = reports[number].phase.name
        if over.kind == "knee":
            best = max(reports[:number], key=lambda one: one.throughput_per_s or 0.0)
            word = "knee" if over.certain else "perhaps the knee (measure longer to be sure)"
            return _answer(best, f"{word}: {_at(best)}; {over.reason}", certain=over.certain)
        if number == 0:
            return Answer(None, None, over.certain, f"none holds: already {here}: {over.reason}")
        best = reports[number - 1]
        text = f"highest that holds: {_at(best)}; {here}: {over.reason}"
        return _answer(best, text, certain=over.certain)
    if not reports:
        return Answer(None, None, certain=False, text="no rung ran")
    best = reports[-1]
    return _answer(best, f"highest that was tried: {_at(best)}; it holds, and more was not tried", certain=True)


def _answer(best: PhaseReport, text: str, *, certain: bool) -> Answer:
    unsure = next((verdict for verdict in best.verdicts if verdict.unsure), None)
    if unsure is not None:
        text += f" (not certain: {unsure.slo.text}: {unsure.unsure})"
    return Answer(best.phase.name, best.throughput_per_s, certain and unsure is None, text)


def _at(report: PhaseReport) -> str:
    return f"{report.phase.name}, {show_rate(report.throughput_per_s)}"


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.0f}" if math.isfinite(ratio) else "?"
