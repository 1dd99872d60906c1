"""Catalogue of the worker's metrics: what there is, its unit, its labels with all their values.

Labels are closed sets, so that no client can make series: a route that is not in the table of routes, and anything else
that is not listed, counts as `other`.
"""

from __future__ import annotations

from typing import get_args

from llmpod.metric import OTHER, Metric
from llmpod.worker.errors import Code
from llmpod.worker.jobs.job_log import Outcome
from llmpod.worker.jobs.route_catalog import RULES

NONE = "none"
ROUTES = ("native", *RULES, OTHER)
OUTCOMES: tuple[str, ...] = get_args(Outcome)
CODES = (NONE, *(code.value.code for code in Code), OTHER)
TRUTH = ("true", "false")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the histograms. The thresholds of the alert rules are among them, where a percentile is exact."""
WAIT_SECONDS = (0.001, 0.005, 0.01, *SECONDS)

CATALOGUE = (
    Metric(
        "llmpod_jobs_total",
        "counter",
        "jobs",
        "Jobs that ended: one for each `end` line of the log, with its outcome and error code.",
        {"route": ROUTES, "outcome": OUTCOMES, "code": CODES},
    ),
    Metric(
        "llmpod_job_seconds",
        "histogram",
        "seconds",
        "Time in the worker, from a job's arrival to the engine's last token (`exec_ms`), of jobs with outcome ok.",
        {"route": ROUTES},
        SECONDS,
    ),
    Metric(
        "llmpod_ttft_seconds",
        "histogram",
        "seconds",
        "Time from a job's arrival in the worker to its first token (`ttft_ms`).",
        {"route": ROUTES},
        SECONDS,
    ),
    Metric(
        "llmpod_slot_wait_seconds",
        "histogram",
        "seconds",
        "Time from a job's arrival in the worker until it got an engine slot (`wait_ms`).",
        {"route": ROUTES},
        WAIT_SECONDS,
    ),
    Metric(
        "llmpod_slots",
        "gauge",
        "slots",
        "Engine slots in use, requests that wait for one, and how many slots there are.",
        {"state": ("in_use", "waiting", "capacity")},
    ),
    Metric(
        "llmpod_tokens_total",
        "counter",
        "tokens",
        "Tokens of jobs that ended: of their prompts, of those the ones found in the prefix cache, and generated.",
        {"kind": ("prompt", "cached", "generated")},
    ),
    Metric(
        "llmpod_clamped_total",
        "counter",
        "jobs",
        "Jobs whose max_tokens was changed, and why.",
        {"reason": ("default", "raised", "lowered", "context", OTHER)},
    ),
    Metric(
        "llmpod_blocked_total",
        "counter",
        "jobs",
        "Jobs that the profile's policy blocked: by which of its policies, and by which kind of rule.",
        {"policy": (), "by": ()},
    ),
    Metric(
        "llmpod_validation_total",
        "counter",
        "jobs",
        "Answers that a profile's checks looked at, and whether they passed.",
        {"valid": TRUTH},
    ),
    Metric(
        "llmpod_delivery_total",
        "counter",
        "results",
        "Results of jobs sent to RunPod: accepted at once, accepted after retries, refused, or lost after all retries.",
        {"result": ("ok", "retried", "refused", "lost")},
    ),
    Metric(
        "llmpod_log_lines_lost_total", "counter", "lines", "Lines of the log that could not be written (a full disk)."
    ),
    Metric(
        "llmpod_start_seconds",
        "gauge",
        "seconds",
        "How long the parts of the start took: checks before it, importing vLLM, loading the model, warming up, "
        "building the routes; and, within loading, what vLLM measured.",
        {
            "phase": (
                *("preflight", "import", "load", "warm_up", "routes"),
                *("download", "weights", "compile", "profile", "capture", OTHER),
            )
        },
    ),
    Metric(
        "llmpod_warm_up",
        "gauge",
        "1",
        "Whether the first request of a capability was answered at the start: 1, or 0.",
        {"capability": ("generate", "embed", "score", "classify", "vision", "audio", "lora", "task", OTHER)},
    ),
    Metric(
        "llmpod_device_memory_bytes",
        "gauge",
        "bytes",
        "Memory when the worker was ready: weights and KV cache of one device as vLLM measured them, free and total "
        "of all GPUs, and main memory of the worker's processes.",
        {"kind": ("weights", "kv_cache", "free", "total", "processes")},
    ),
    Metric("llmpod_uptime_seconds", "gauge", "seconds", "Time since the worker's process started."),
    Metric(
        "llmpod_push_failures_total", "counter", "pushes", "Pushes to METRICS_PUSH_URL that failed, deletions included."
    ),
    Metric(
        "llmpod_metric_failures_total",
        "counter",
        "calls",
        "Updates of metrics that failed inside the worker. The jobs were not affected; the numbers are too low.",
    ),
    Metric(
        "llmpod_info",
        "gauge",
        "1",
        "Always 1; its labels: releases of llmpod, vLLM and torch, the commit, the GPU, the served model.",
        {"version": (), "commit": (), "vllm": (), "torch": (), "gpu": (), "model": ()},
    ),
)
"""Every metric of the worker. vLLM's own (vllm:…) stand beside them on /metrics."""
