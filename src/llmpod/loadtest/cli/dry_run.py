"""Dry run (--dry-run): prints what a run would send, how fast and its least cost; sends nothing."""

import json
from collections.abc import Iterator

from llmpod.loadtest.analysis.phase import View
from llmpod.loadtest.model.plan import Phase, Plan
from llmpod.loadtest.options import RunOptions
from llmpod.loadtest.run.payload import Payloads
from llmpod.loadtest.run.rate_limit import RUNPOD_LIMITS
from llmpod.loadtest.units import count, show_duration, show_rate, show_usd

# What a job of the one endpoint with published measurements took; only the order of magnitude matters here.
TYPICAL_EXEC_S = 2.8


def describe(phase: Phase) -> str:
    parts = [f"{phase.name}: {phase.shape}"]
    if phase.kind == "closed":
        parts.append(count(phase.concurrency, "client"))
    elif phase.requested_rate_per_s is not None:
        parts.append(f"{show_rate(phase.requested_rate_per_s)} on average")
    planned = phase.planned_requests
    parts.append(count(planned, "request") if planned is not None else "as many requests as fit")
    length = phase.duration_s or (phase.arrivals.duration_s if phase.arrivals and phase.requests is None else None)
    if length:
        parts.append(f"for {show_duration(length)}")
    before = [count(phase.warmup_requests, "request")] if phase.warmup_requests else []
    before += [show_duration(phase.warmup_s)] if phase.warmup_s else []
    parts.append(f"warm-up {' and '.join(before) or 'none'} (not counted)")
    if phase.cooldown_s:
        parts.append(f"cool-down {show_duration(phase.cooldown_s)} (not counted)")
    return ", ".join(parts)


def lines(plan: Plan, view: View, base_url: str, payloads: Payloads, options: RunOptions) -> list[str]:
    out = [f"would test {base_url} by {plan.mode}, seed {plan.seed}; nothing is sent"]
    if plan.sweep is not None:
        out.append("a ladder: it stops climbing when an objective fails or throughput stops growing")
    out += [f"  {describe(phase)}" for phase in plan.phases]
    if any(phase.kind == "closed" and phase.concurrency > 1 for phase in plan.phases):
        out.append("  at the end of a phase its clients go on, not counted, until the last measured answer is there")
    planned = [phase.planned_requests for phase in plan.phases]
    total = sum(n or 0 for n in planned) + sum(phase.warmup_requests for phase in plan.phases)
    known = all(n is not None for n in planned)
    out.append(f"requests: {total}{'' if known else ' and as many as the durations allow'}, warm-up included")
    if view.usd_per_hour is None:
        out.append("cost: unknown without --gpu-price")
    elif known:
        cost = total * TYPICAL_EXEC_S * view.usd_per_hour / 3600
        out.append(
            f"cost: about {show_usd(cost)} of execution if a job runs {TYPICAL_EXEC_S:g} s; idle and "
            f"starting workers come on top"
        )
    else:
        out.append(f"cost: at most ${view.usd_per_hour:g} per hour and worker that is up")
    out += _limits(plan, options)
    out += [f"objectives: {', '.join(slo.text for slo in view.slos)}"] if view.slos else []
    first = json.dumps(payloads.body(plan.mode, plan.phases[0].name, 0), ensure_ascii=False)
    return [*out, f"first body: {first[:400]}"]


def _limits(plan: Plan, options: RunOptions) -> Iterator[str]:
    if plan.mode == "http":
        yield f"requests go to POST {options.http_path}; RunPod names no rate limit for load-balancing endpoints"
        return
    op = "run" if plan.mode == "stream" else plan.mode
    limit = RUNPOD_LIMITS[op]
    kept = "kept on this side" if options.limits == "runpod" else "NOT kept (--limits off)"
    yield f"RunPod's limit on /{op}: {limit.per_window} per 10 s, {limit.concurrent} at once; {kept}"
    peak = max((phase.concurrency or phase.max_in_flight or 0 for phase in plan.phases), default=0)
    if limit.concurrent and peak > limit.concurrent:
        yield f"  {peak} clients are more than {limit.concurrent} at once: the others wait on this side"
    if plan.mode == "run" and options.poll_interval:
        yield f"polling: about {peak / max(options.poll_interval, 0.001):.0f} /status per second of 200 allowed"
