"""Validity checks of a measurement, and the issues they find."""

from collections.abc import Mapping
from typing import Any

from llmpod.loadtest.analysis.phase import PhaseReport, ValidityIssue
from llmpod.loadtest.units import count, show_ms, show_rate

LAG_MS, LAG_SHARE = 10.0, 0.05
SCHEDULE_DELAY_MS = 10.0
ACHIEVED_SHARE = 0.95


def doubts(report: PhaseReport, *, allow_worker_change: bool) -> tuple[ValidityIssue, ...]:
    found = [
        *_nothing_generated(report),
        *_client(report.client, _p50(report, "total")),
        *_schedule(report),
        *_workers(report, allow_worker_change),
    ]
    law = report.little
    if law is not None and not law.holds and not report.failed:  # a client pauses after a failure
        found.append(
            ValidityIssue(
                f"Little's law: {law.throughput_per_s:.2f}/s x {law.latency_s:.2f} s = {law.ratio * law.clients:.1f}, "
                f"but there were {law.clients} clients: some of them were idle (ramping up, or unable to keep up)",
                fatal=False,
            )
        )
    if report.rows.get("total") is not None and report.tokens_estimated:
        found.append(
            ValidityIssue(
                f"tokens of {report.tokens_estimated} answers are estimated (no usage in the output)", fatal=False
            )
        )
    if report.silences:
        told = ", ".join(f"{one.from_s:.1f} to {one.to_s:.1f} s" for one in report.silences[:3])
        more = f" and {count(len(report.silences) - 3, 'more time')}" if len(report.silences) > 3 else ""
        most = max(one.in_flight for one in report.silences)
        text = f"nothing was answered from {told}{more} of the window, with up to {count(most, 'job')} in flight"
        found.append(ValidityIssue(text, fatal=False))
    inconsistent = report.warnings.get("timing_inconsistent", 0)
    if inconsistent:
        found.append(
            ValidityIssue(
                f"{inconsistent} jobs report times that do not fit what the client saw (retries, restarts)", fatal=False
            )
        )
    return tuple(found)


def _nothing_generated(report: PhaseReport) -> list[ValidityIssue]:
    """A phase without a single answer measured no model, whatever its latencies say."""
    blocked = report.outcomes.get("blocked", 0)
    if report.ok or not blocked:
        return []
    return [
        ValidityIssue(
            f"nothing was generated: {count(blocked, 'job')} of {report.counted} blocked by the worker's policy; "
            "--expect-blocked if that is what is tested",
            fatal=True,
        )
    ]


def _client(client: Mapping[str, Any], p50_ms: float | None) -> list[ValidityIssue]:
    lag = client.get("loop_lag_p99_ms")
    if not isinstance(lag, int | float) or lag <= LAG_MS:
        return []
    fatal = p50_ms is not None and lag > LAG_SHARE * p50_ms
    return [
        ValidityIssue(
            f"this client was slow: its event loop woke up {show_ms(lag)} late at p99"
            + (", more than 5 % of the total's p50; use fewer clients or a faster machine" if fatal else ""),
            fatal,
        )
    ]


def _schedule(report: PhaseReport) -> list[ValidityIssue]:
    found = []
    asked, sent = report.requested_per_s, report.achieved_per_s
    if asked is not None and sent is not None and sent < ACHIEVED_SHARE * asked:
        capped = report.phase.max_in_flight
        reason = (
            f"--max-concurrency {capped} held requests back"
            if capped
            else "this client or a rate limit held requests back"
        )
        found.append(ValidityIssue(f"only {show_rate(sent)} of {show_rate(asked)} was sent: {reason}", fatal=True))
    late = _p50(report, "schedule_delay")
    if late is not None and late > SCHEDULE_DELAY_MS:
        found.append(
            ValidityIssue(f"half of the requests left {show_ms(late)} or more after they were due", fatal=True)
        )
    return found


def _workers(report: PhaseReport, allowed: bool) -> list[ValidityIssue]:
    health = report.health
    if health is None or health.steady:
        return []
    fatal = not (allowed or report.phase.workers_may_change)
    text = f"the number of live workers changed during the measured window ({health.live_min} to {health.live_max})"
    return [
        ValidityIssue(
            text + ("; warm up longer, fix workersMin, or pass --allow-worker-change" if fatal else ""), fatal
        )
    ]


def _p50(report: PhaseReport, metric: str) -> float | None:
    found = report.rows.get(metric)
    at = found.at(50.0) if found else None
    return at.value if at else None
