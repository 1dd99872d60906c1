"""Report sentences: the verdict, and a phase's validity, numbers and facts, for the terminal, the page and the
summary."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpod.loadtest.analysis.phase import PhaseReport
from llmpod.loadtest.errors import Exit
from llmpod.loadtest.model.failures import WARNINGS
from llmpod.loadtest.report.report import Report, without_result
from llmpod.loadtest.report.view import Cell
from llmpod.loadtest.units import count, show_duration, show_ms, show_rate, show_share, show_usd

HEADLINES = {
    Exit.PASS: ("PASS", "good"),
    Exit.ERROR: ("ERROR: nothing usable was measured", "bad"),
    Exit.SLO_FAILED: ("FAIL: an objective was missed", "bad"),
    Exit.ABORTED: ("ABORTED by a guard", "bad"),
    Exit.INVALID: ("INVALID: the measurement does not meet the validity checks", "warn"),
    Exit.INTERRUPTED: ("INTERRUPTED: results up to the interruption", "warn"),
}


@dataclass(frozen=True, slots=True)
class Status:
    """Validity of a phase: the verdict, supporting facts, and (text, fatal) for each issue."""

    valid: Cell
    facts: tuple[str, ...]
    doubts: tuple[tuple[str, bool], ...]


def headline(report: Report) -> tuple[str, str]:
    """(words, tone)."""
    words, tone = HEADLINES.get(report.exit_code, ("", ""))
    empty = [phase.phase.name for phase in report.phases if without_result(phase)]
    if report.exit_code is Exit.ERROR and not report.stopped and len(empty) < len(report.phases):
        words = f"ERROR: no job succeeded in {', '.join(empty)}"
    if report.exit_code is Exit.PASS and not any(phase.verdicts for phase in report.phases):
        words = "DONE (no objectives were given)"
    if report.exit_code is Exit.SLO_FAILED and report.answer is not None:
        words = "FAIL: not even the lowest rung holds the objectives"
    return words, tone


def status(phase: PhaseReport) -> Status:
    facts = []
    if "loop_lag_p99_ms" in phase.client:
        facts.append(f"client loop lag p99 {show_ms(phase.client['loop_lag_p99_ms'])}")
    if "cpu_share" in phase.client:
        facts.append(f"client CPU {phase.client['cpu_share']:.0%} of a core")
    if phase.health is not None:
        low, high = phase.health.live_min, phase.health.live_max
        facts.append(f"workers {low}" if low == high else f"workers {low} to {high}")
    else:
        facts.append("workers unknown (no /health)")
    if phase.little is not None:
        law = phase.little
        facts.append(
            f"Little's law: {law.throughput_per_s:.2f}/s x {show_ms(law.latency_s * 1000)} = "
            f"{law.ratio * law.clients:.2f} of {count(law.clients, 'client')}"
        )
    if phase.poll_overshoot_ms:
        facts.append(f"polling corrected by {show_ms(phase.poll_overshoot_ms)} on average")
    mark = Cell("✗ not valid", tone="warn")
    if phase.valid:
        mark = Cell("✓ valid", tone="good") if phase.ok else Cell("nothing to judge", tone="dim")
    told = [(doubt.text, doubt.fatal) for doubt in phase.doubts]
    told += [(f"{times} x {name}: {WARNINGS[name]}", False) for name, times in phase.warnings.items()]
    return Status(mark, tuple(facts), tuple(told))


def left_out(phase: PhaseReport) -> str:
    return ", ".join(f"{number} {name}" for name, number in phase.excluded.items() if number) or "none"


def numbers(phase: PhaseReport) -> list[tuple[str, str]]:
    """(label with its unit, number) of what matters most."""
    out = [
        ("jobs counted", f"{phase.counted}"),
        ("jobs failed", f"{phase.failed}"),
        ("throughput (jobs per second or minute)", show_rate(phase.throughput_per_s)),
    ]
    p50 = phase.value("total", 50)
    if p50 is not None:
        out.append(("total, p50 (time)", show_ms(p50)))
    return out + ([("output tokens per second", f"{phase.tokens_per_s:.1f}")] if phase.tokens_per_s else [])


def facts(phase: PhaseReport) -> list[tuple[str, str]]:
    """(label, words) for what is no table."""
    out = []
    if phase.requested_per_s is not None:
        out.append(("sent", f"{show_rate(phase.achieved_per_s)} of {show_rate(phase.requested_per_s)} asked"))
    if phase.outcomes.keys() - {"answered", "failed"}:
        words = ", ".join(f"{name} {number}" for name, number in phase.outcomes.items())
        parts = [f"{intent or 'all'} {valid} of {judged}" for intent, (valid, judged) in phase.validated.items()]
        out.append(("outcomes", words + (f"; valid: {', '.join(parts)}" if parts else "")))
    if phase.refusals:
        refused = count(sum(phase.refusals.values()), "submit")
        kinds = ", ".join(f"{name} x{number}" for name, number in phase.refusals.items())
        were = "was" if refused == "1 submit" else "were"
        out.append(("retries", f"{refused} {were} refused first ({kinds}), {phase.retry_wait_s:.1f} s of waiting"))
    if phase.output_tokens:
        reasons = ", ".join(f"{name} {number}" for name, number in phase.finish_reasons.items())
        words = f"{phase.output_tokens} out, {phase.tokens_per_s or 0:.1f}/s"
        out.append(("tokens", words + (f"; ended by {reasons}" if reasons else "")))
    classes = [one for one in phase.classes if one.n]
    if any(one.name != "warm" for one in classes):
        words = ", ".join(f"{one.n} {one.name} (delay p50 {show_ms(one.delay_p50_ms)})" for one in classes)
        if phase.without_cold is not None and (p95 := phase.without_cold.value(95)) is not None:
            words += f"; warm only: total p95 {show_ms(p95)}"
        out.append(("starts", words))
    if len(phase.strata) > 1:
        words = ", ".join(
            f"with {one.workers}: p50 {show_ms(one.p50_ms)} p95 {show_ms(one.p95_ms)} (n={one.n})"
            for one in phase.strata
        )
        out.append(("by live workers", words))
    if phase.health is not None and len(phase.health.points) > 1:
        health = phase.health
        each = health.assumed_per_worker
        assumed = f" (assuming {count(each, 'job')} per worker; --scaler-value says otherwise)" if each else ""
        short = "unknown (too few looks at /health)"
        if health.short_s is not None:
            short = f"for {show_duration(health.short_s)} of {show_duration(health.span_s)}{assumed}"
        throttled = f", throttled for {show_duration(health.throttled_s)}" if health.throttled_s else ""
        out.append(("short of workers", f"{short}{throttled}, queue at most {health.queued_max}"))
    if phase.goodput_share is not None:
        out.append(("goodput", f"{show_share(phase.goodput_share)} of requests, {show_rate(phase.goodput_per_s)}"))
    if phase.cost is not None:
        money = phase.cost
        whole = f", all worker time {show_usd(money.workers_usd)}" if money.workers_usd is not None else ""
        per = f"per 1k requests {show_usd(money.per_1k_requests)}, per 1k output tokens {show_usd(money.per_1k_tokens)}"
        out.append(("cost", f"busy workers {show_usd(money.busy_usd)}{whole}; {per} at ${money.usd_per_hour:g}/h"))
    return out


def shown_in_full(report: Report) -> Sequence[PhaseReport]:
    """The phases whose numbers a terminal gets in full: of a sweep the answer and what came after it."""
    if report.answer is None or len(report.phases) <= 2:
        return report.phases
    names = [phase.phase.name for phase in report.phases]
    at = names.index(report.answer.best) if report.answer.best in names else 0
    return report.phases[at : at + 2]
