"""Catalogue of the metrics that `llmpod loadtest watch` serves: an endpoint as it is seen from outside."""

from llmpod.loadtest.model.health import WORKER_COUNTS
from llmpod.metric import Metric

JOB_STATES = {"inQueue": "in_queue", "inProgress": "in_progress"}
"""RunPod's names in /health, and the label's values."""
ENDED_STATES = {"completed": "completed", "failed": "failed", "retried": "retried"}
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the histograms. The thresholds of the alert rules are among them, where a percentile is exact."""

_ENDPOINT: dict[str, tuple[str, ...]] = {"endpoint": ()}  # its id: one series per watched endpoint
CATALOGUE = (
    Metric("llmpod_endpoint_up", "gauge", "1", "1 if the last /health was answered with counts, 0 if not.", _ENDPOINT),
    Metric(
        "llmpod_endpoint_jobs",
        "gauge",
        "jobs",
        "Jobs in RunPod's queue, and on workers.",
        {**_ENDPOINT, "state": tuple(JOB_STATES.values())},
    ),
    Metric(
        "llmpod_endpoint_jobs_ended",
        "gauge",
        "jobs",
        "Jobs that RunPod says ended, as /health counts them: not always upwards, so this is no counter.",
        {**_ENDPOINT, "state": tuple(ENDED_STATES.values())},
    ),
    Metric(
        "llmpod_endpoint_workers",
        "gauge",
        "workers",
        "Workers by state. Those that are ready are also counted as idle or running.",
        {**_ENDPOINT, "state": WORKER_COUNTS},
    ),
    Metric(
        "llmpod_endpoint_cold_starts_total",
        "counter",
        "starts",
        "Rises of the number of initializing workers between two looks; a start that begins and ends between them "
        "is not seen.",
        _ENDPOINT,
    ),
    Metric(
        "llmpod_endpoint_polls_failed_total",
        "counter",
        "polls",
        "Looks at /health that brought no counts: no answer, an error, or something else than counts.",
        _ENDPOINT,
    ),
    Metric(
        "llmpod_probe_total_seconds",
        "histogram",
        "seconds",
        "Time from sending a probe job to its result, as a client measures it.",
        _ENDPOINT,
        SECONDS,
    ),
    Metric(
        "llmpod_probe_delay_seconds",
        "histogram",
        "seconds",
        "RunPod's delayTime of a probe job: its time in the queue, a cold start included.",
        _ENDPOINT,
        SECONDS,
    ),
    Metric(
        "llmpod_probe_exec_seconds",
        "histogram",
        "seconds",
        "RunPod's executionTime of a probe job: its time on a worker.",
        _ENDPOINT,
        SECONDS,
    ),
    Metric(
        "llmpod_probe_failures_total",
        "counter",
        "probes",
        "Probe jobs that were not completed: refused, failed, or not ended in time.",
        _ENDPOINT,
    ),
)
