"""Health sample: an endpoint's answer to /health, as far as it can be used."""

from typing import Any

from llmpod.loadtest.intake import count

JOB_COUNTS = ("inQueue", "inProgress", "completed", "failed", "retried")
WORKER_COUNTS = ("idle", "ready", "running", "initializing", "throttled", "unhealthy")


def health_sample(body: Any) -> dict[str, dict[str, int]] | None:
    """The counts of a /health reply, or None when it is none. A count that is missing stays missing: it is not zero."""
    if not isinstance(body, dict) or not isinstance(body.get("workers"), dict):
        return None
    given = body.get("jobs")
    jobs: dict[str, Any] = given if isinstance(given, dict) else {}
    return {
        part: {name: number for name in names if (number := count(told.get(name))) is not None}
        for part, told, names in (("jobs", jobs, JOB_COUNTS), ("workers", body["workers"], WORKER_COUNTS))
    }


def deserted(sample: dict[str, Any]) -> bool:
    """Whether jobs wait and no worker is live, nor one on its way."""
    workers = sample["workers"]
    nobody = live_workers(workers) == 0 and not workers.get("initializing", 0)
    return nobody and sample["jobs"].get("inQueue", 0) > 0


def live_workers(workers: dict[str, int]) -> int | None:
    """Workers that can take a job now: those running one and those idle. (`ready` overlaps with them.)"""
    if "running" in workers or "idle" in workers:
        return workers.get("running", 0) + workers.get("idle", 0)
    return workers.get("ready")
