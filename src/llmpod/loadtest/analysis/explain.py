"""Explanation in one sentence: where the time went, or why that cannot be told."""

import math
from operator import itemgetter

from llmpod.loadtest.analysis.latency import Share
from llmpod.loadtest.analysis.phase import PhaseReport
from llmpod.loadtest.model.plan import ONE_REQUEST
from llmpod.loadtest.stats import nearest_rank
from llmpod.loadtest.units import count, show_duration, show_ms

# So many looks at /health must have seen too few workers before the latency is put down to that.
SHORT_SAMPLES = 3
PARTS = {
    "wait": "Client wait",
    "retries": "Waiting to submit again",
    "delay": "Queue",
    "exec": "Execution",
    "overhead": "Overhead",
}


def why(report: PhaseReport) -> str:
    """The strongest of the explanations that the numbers support."""
    if report.counted == 0:
        return "Nothing was measured."
    if report.ok == 0:
        first = report.failures[0]  # the most frequent
        return (
            f"Nothing succeeded: {first.n} of {report.counted} jobs ended as {first.name} "
            f"({first.example or first.meaning}).{_no_worker(report)}"
        )
    parts = [part for part in (_workers_missing(report), _cold(report), _two_states(report)) if part]
    if not parts:
        parts = [_where(report)]
    if report.failed / report.counted > 0.01:
        first = report.failures[0]
        most = f"most as {first.name}" if first.n > report.failed / 2 else ""
        named = ", ".join(f"{one.n} as {one.name}" for one in report.failures[:3])
        rest = len(report.failures) - 3
        ways = most or named + (f", the others in {count(rest, 'other way')}" if rest > 0 else "")
        parts.append(f"{report.failed} of {report.counted} jobs failed: {ways}.")
    return " ".join(parts)


def _no_worker(report: PhaseReport) -> str:
    health = report.health
    waited = report.failures[0].error_class in ("client_timeout", "job_timed_out")
    if not waited or health is None or health.live_max > 0:
        return ""
    if health.initializing_s > 0:
        return f" No worker became live; one was starting for {show_duration(health.initializing_s)}: see its log."
    throttled = f"; throttled for {show_duration(health.throttled_s)}" if health.throttled_s > 0 else ""
    span = show_duration(health.span_s)
    return f" No worker was live at any time of these {span} (max workers 0? no GPU free?){throttled}."


def _workers_missing(report: PhaseReport) -> str | None:
    health = report.health
    if health is None or health.short_s is None or health.short_s < 0.1 * health.span_s:
        return None
    if not report.shares or report.shares[0].delay_ms < 0.3 * report.shares[0].total_ms:
        return None
    short = [point for point in health.points if point.live < point.wanted]
    if len(short) < SHORT_SAMPLES:
        return None
    live = sorted(point.live for point in short)[len(short) // 2]
    wanted = sorted(point.wanted for point in short)[len(short) // 2]
    text = (
        f"The latency is worker shortage: {show_duration(health.short_s)} of {show_duration(health.span_s)} "
        f"with {live} of {wanted} wanted workers"
    )
    if health.throttled_s > 0:
        text += f", {show_duration(health.throttled_s)} of it with throttled workers"
    return text + f"; {report.shares[0].delay_ms / report.shares[0].total_ms:.0%} of the mean total is queue."


def _cold(report: PhaseReport) -> str | None:
    cold = next((one for one in report.classes if one.name == "cold"), None)
    if cold is None or not cold.n or report.without_cold is None:
        return None
    with_all, p95 = report.value("total", 95), report.without_cold.value(95)
    if with_all is None or p95 is None or with_all < 1.2 * p95:
        return None
    return (
        f"{cold.n} cold starts of {show_ms(cold.delay_p50_ms)} make the p95 {show_ms(with_all)}; "
        f"without them and the wakes it is {show_ms(p95)}."
    )


def _two_states(report: PhaseReport) -> str | None:
    """A long run whose slices sit in two groups, far apart for how wide each is: a percentile of the whole describes
    neither. A queue's ups and downs fill the range between them."""
    middles = sorted(one.p50_ms for one in report.slices if one.p50_ms)
    if len(middles) < 10:
        return None
    cut = math.sqrt(middles[len(middles) // 10] * middles[-1 - len(middles) // 10])
    groups = [value for value in middles if value < cut], [value for value in middles if value >= cut]
    slow = len(groups[1])
    if min(map(len, groups)) < max(3, len(middles) / 10):
        return None
    low, high = (nearest_rank(group, 50) for group in groups)
    width = max(math.log(nearest_rank(group, 80) / nearest_rank(group, 20)) for group in groups)
    if high < 1.6 * low or math.log(high / low) < 2.3 * width:
        return None
    return (
        f"Two states, not one: {slow} of {len(middles)} slices have a p50 near {show_ms(high)}, the others "
        f"near {show_ms(low)}; "
        f"look at what changed between them (workers, usually)."
    )


def _where(report: PhaseReport) -> str:
    if not report.shares:
        ttft = report.rows.get("ttft")
        if ttft is not None and (p50 := ttft.value(50)) is not None:
            total = report.rows["total"].mean_ms
            inside = "a wait for a worker" if report.mode == "http" else "the queue"
            return (
                "Queue and execution are not measurable on this route; the first token took "
                f"{ttft.mean_ms / total:.0%} of the mean total (p50 {show_ms(p50)}), {inside} included."
            )
        if report.mode in ONE_REQUEST:
            return "Queue and execution are not measurable on this route; an answer in one piece has no first token."
        return "Neither queue nor execution time is on record, so where the time went is not known."
    mean, p95 = report.shares[0], report.shares[-1]
    biggest = _biggest(mean)
    text = (
        f"{biggest[0]} is {biggest[1] / max(mean.total_ms, 1e-9):.0%} of the mean total "
        f"({show_ms(biggest[1])} of {show_ms(mean.total_ms)})"
    )
    tail = _biggest(p95)
    if tail[0] != biggest[0]:
        text += f"; at p95 it is {tail[0].lower()} ({show_ms(tail[1])} of {show_ms(p95.total_ms)})"
    workers = len(report.workers)
    slots = sum(max(1, one.at_once) for one in report.workers)
    if biggest[0] == "Queue" and report.phase.kind == "closed" and workers:
        clients = count(report.phase.concurrency, "client")
        if report.phase.concurrency > slots:
            each = "one job at a time" if slots == workers else f"{count(slots, 'job')} at a time together"
            text += f": {clients} on {count(workers, 'worker')}, {each}"
        else:
            ran = f"{count(workers, 'worker')} ran {slots} at once"
            text += f", although {ran} for {clients}: a wait to be picked up"
    return text + "."


def _biggest(share: Share) -> tuple[str, float]:
    name, ms = max(share.parts.items(), key=itemgetter(1))
    return PARTS[name], ms
