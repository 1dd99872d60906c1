"""Validity checks of a measurement, and the issues they find."""

from collections.abc import Iterator

from llmpod.loadtest.analysis.phase import PhaseReport, ValidityIssue
from llmpod.loadtest.units import count, show_ms, show_rate

LAG_MS, LAG_SHARE = 10.0, 0.05
SCHEDULE_DELAY_MS = 10.0
ACHIEVED_SHARE = 0.95


def doubts(report: PhaseReport, *, allow_worker_change: bool) -> tuple[ValidityIssue, ...]:
    found = [*_client(report), *_endpoint(report, allow_worker_change), *_figures(report)]
    return tuple(ValidityIssue(text, fatal) for text, fatal in found)


def _client(report: PhaseReport) -> Iterator[tuple[str, bool]]:
    """What this client, or what was asked of it, makes doubtful."""
    blocked = report.outcomes.get("blocked", 0)
    if blocked and not report.ok:  # without an answer no model was measured, whatever the latencies say
        yield (
            f"nothing was generated: {count(blocked, 'job')} of {report.counted} blocked by the worker's policy; "
            "--expect-blocked if that is what is tested",
            True,
        )
    lag, p50_ms = report.client.get("loop_lag_p99_ms"), report.value("total", 50)
    if isinstance(lag, int | float) and lag > LAG_MS:
        fatal = p50_ms is not None and lag > LAG_SHARE * p50_ms
        cure = ", more than 5 % of the total's p50; use fewer clients or a faster machine" if fatal else ""
        yield f"this client was slow: its event loop woke up {show_ms(lag)} late at p99{cure}", fatal
    asked, sent = report.requested_per_s, report.achieved_per_s
    if asked is not None and sent is not None and sent < ACHIEVED_SHARE * asked:
        capped = report.phase.max_in_flight
        reason = f"--max-concurrency {capped}" if capped else "this client or a rate limit"
        yield f"only {show_rate(sent)} of {show_rate(asked)} was sent: {reason} held requests back", True
    late = report.value("schedule_delay", 50)
    if late is not None and late > SCHEDULE_DELAY_MS:
        yield f"half of the requests left {show_ms(late)} or more after they were due", True


def _endpoint(report: PhaseReport, allow_worker_change: bool) -> Iterator[tuple[str, bool]]:
    health = report.health
    if health is not None and not health.steady:
        fatal = not (allow_worker_change or report.phase.workers_may_change)
        cure = "; warm up longer, fix workersMin, or pass --allow-worker-change" if fatal else ""
        seen = f"({health.live_min} to {health.live_max})"
        yield f"the number of live workers changed during the measured window {seen}{cure}", fatal


def _figures(report: PhaseReport) -> Iterator[tuple[str, bool]]:
    """What one should know of the figures; none of it is fatal."""
    law = report.little
    if law is not None and not law.holds and not report.failed:  # a client pauses after a failure
        yield (
            f"Little's law: {law.throughput_per_s:.2f}/s x {law.latency_s:.2f} s = {law.ratio * law.clients:.1f}, "
            f"but there were {law.clients} clients: some of them were idle (ramping up, or unable to keep up)",
            False,
        )
    if "total" in report.rows and report.tokens_estimated:
        yield f"tokens of {report.tokens_estimated} answers are estimated (no usage in the output)", False
    if report.silences:
        told = ", ".join(f"{one.from_s:.1f} to {one.to_s:.1f} s" for one in report.silences[:3])
        more = f" and {count(len(report.silences) - 3, 'more time')}" if len(report.silences) > 3 else ""
        most = max(one.in_flight for one in report.silences)
        text = f"nothing was answered from {told}{more} of the window, with up to {count(most, 'job')} in flight"
        yield text, False
    inconsistent = report.warnings.get("timing_inconsistent", 0)
    if inconsistent:
        yield f"{inconsistent} jobs report times that do not fit what the client saw (retries, restarts)", False
