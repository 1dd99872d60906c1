"""What it cost, as far as a client can tell: an estimate from below and one from above, never one number that
pretends."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpod.loadtest.health import HealthReport
from llmpod.loadtest.records import Job


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars. `exec_usd`: execution time at the GPU's price. `workers_usd`: all live (and initializing) worker
    time of the
    window, which is nearer to the bill; None without /health. `per_1k_*` are from `workers_usd` where there is one."""

    usd_per_hour: float
    exec_usd: float
    workers_usd: float | None
    per_1k_requests: float | None
    per_1k_tokens: float | None
    per_good_request: float | None
    idle_share: float | None


def cost(jobs: Sequence[Job], health: HealthReport | None, usd_per_hour: float | None, good: int) -> Cost | None:
    """None without a price."""
    if usd_per_hour is None:
        return None
    per_s = usd_per_hour / 3600
    exec_s = sum(job.exec_ms or 0.0 for job in jobs) / 1000
    worker_s = _worker_seconds(health)
    basis = per_s * (worker_s if worker_s is not None else exec_s)
    requests = sum(1 for job in jobs if job.ok)
    tokens = sum(job.output_tokens or 0 for job in jobs if job.ok)
    return Cost(
        usd_per_hour=usd_per_hour,
        exec_usd=exec_s * per_s,
        workers_usd=worker_s * per_s if worker_s is not None else None,
        per_1k_requests=basis / requests * 1000 if requests else None,
        per_1k_tokens=basis / tokens * 1000 if tokens else None,
        per_good_request=basis / good if good else None,
        idle_share=max(0.0, 1 - exec_s / worker_s) if worker_s else None,
    )


def _worker_seconds(health: HealthReport | None) -> float | None:
    """The integral of live and initializing workers over the window."""
    if health is None or len(health.points) < 2:
        return None
    total = 0.0
    for point, after in zip(health.points, health.points[1:], strict=False):
        total += (point.live + point.initializing) * (after.t_ms - point.t_ms) / 1000
    covered = (health.points[-1].t_ms - health.points[0].t_ms) / 1000
    return total * health.span_s / covered if covered > 0 else None


def preflight_usd(requests: int | None, exec_s: float, usd_per_hour: float | None) -> float | None:
    """What a plan will cost at least, were every job to take `exec_s`."""
    return None if usd_per_hour is None or requests is None else requests * exec_s * usd_per_hour / 3600
