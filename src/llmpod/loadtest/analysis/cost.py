"""Cost of a phase as a client can estimate it: a lower bound from busy time, and a higher estimate from /health."""

import itertools
from dataclasses import dataclass

from llmpod.loadtest.analysis.timeline import HealthReport


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars. `busy_usd`: worker time with a measured job on the worker, the least it can be. `workers_usd`: all
    live and initializing worker time of the window, nearer to the bill; None without /health. `per_1k_*` are from
    `workers_usd` where there is one."""

    usd_per_hour: float
    busy_usd: float
    workers_usd: float | None
    per_1k_requests: float | None
    per_1k_tokens: float | None
    per_good_request: float | None


def cost(
    busy_s: float,
    health: HealthReport | None,
    usd_per_hour: float | None,
    *,
    measured: tuple[float, float],
    window: tuple[float, float],
    good_share: float | None,
) -> Cost | None:
    """None without a price. `measured` and `window`: (answers, tokens) of the measured jobs, and of the window with
    whatever else was answered in it."""
    if usd_per_hour is None:
        return None
    per_s = usd_per_hour / 3600
    worker_s = _worker_seconds(health)
    spent, (answers, tokens) = (busy_s, measured) if worker_s is None else (worker_s, window)
    good = answers * good_share if good_share is not None else 0.0
    return Cost(
        usd_per_hour=usd_per_hour,
        busy_usd=busy_s * per_s,
        workers_usd=worker_s * per_s if worker_s is not None else None,
        per_1k_requests=spent * per_s / answers * 1000 if answers else None,
        per_1k_tokens=spent * per_s / tokens * 1000 if tokens else None,
        per_good_request=spent * per_s / good if good else None,
    )


def _worker_seconds(health: HealthReport | None) -> float | None:
    """The integral of live and initializing workers over the window."""
    if health is None or len(health.points) < 2:
        return None
    pairs = itertools.pairwise(health.points)
    total_ms = sum((point.live + point.initializing) * (after.t_ms - point.t_ms) for point, after in pairs)
    covered_ms = health.points[-1].t_ms - health.points[0].t_ms
    return total_ms / covered_ms * health.span_s if covered_ms > 0 else None
