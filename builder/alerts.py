"""The alert rules as one table: condition, threshold, and what the person does who is called.

builder/monitoring.py makes ops/alerts.yaml, its tests (ops/alerts_test.yaml) and the runbook from it. Each rule brings
synthetic series at which it must fire and others, just on the harmless side of its threshold, at which it must not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmpod.loadtest.watch.catalogue import SECONDS as PROBE_SECONDS
from llmpod.worker.metrics.catalogue import SECONDS as WORKER_SECONDS

Series = Mapping[str, str]
"""Series -> their values, in promtool's notation: one value each 15 s, `start+stepxcount`."""

ENDPOINT = 'endpoint="ep"'
WORKER = 'endpoint="ep",worker="w1"'
STEPS = 44  # eleven minutes: the rules are evaluated at the tenth


@dataclass(frozen=True)
class Rule:
    """An alert. `expr` holds {threshold}; `by` are the labels that its result has."""

    name: str
    severity: Literal["page", "warn"]
    expr: str
    threshold: float
    unit: str  # seconds, share (0 to 1), or what is counted
    minutes: float  # for how long the condition must hold
    meaning: str
    first_look: str  # a command or a panel, and what to read there
    first_act: str
    fires: Series
    holds: Series
    by: tuple[str, ...] = ("endpoint",)

    @property
    def anchor(self) -> str:
        """The runbook's heading for the rule, as a link."""
        return f"docs/operations.md#{self.name.lower()}"

    @property
    def condition(self) -> str:
        """The expression with its threshold."""
        return self.expr.replace("{threshold}", f"{self.threshold:g}")

    @property
    def metrics(self) -> set[str]:
        """The names of the series that the expression reads."""
        return set(re.findall(r"\bllmpod_\w+", self.expr))


def level(series: str, value: float) -> Series:
    """A gauge that stays at a value."""
    return {series: f"{value:g}x{STEPS}"}


def growth(series: str, step: float) -> Series:
    """A counter that grows by `step` each 15 s."""
    return {series: f"0+{step:g}x{STEPS}"}


def observed(name: str, labels: str, bounds: tuple[float, ...], at_most: float) -> Series:
    """A histogram all of whose observations fall into the bucket that ends at `at_most`."""
    ends = (*(f"{bound:g}" if bound != int(bound) else f"{bound:.1f}" for bound in bounds), "+Inf")
    steps = (*(int(bound >= at_most) for bound in bounds), 1)
    return {f'{name}_bucket{{{labels},le="{end}"}}': f"0+{step}x{STEPS}" for end, step in zip(ends, steps, strict=True)}


def quantile(share: float, metric: str, window: str) -> str:
    return f"histogram_quantile({share:g}, sum by (endpoint, le) (rate({metric}_bucket[{window}]))) > {{threshold}}"


def probe(part: str, at_most: float) -> Series:
    return observed(f"llmpod_probe_{part}_seconds", ENDPOINT, PROBE_SECONDS, at_most)


def jobs(**steps: float) -> Series:
    """Jobs that end per 15 s: `ok`, `error`, `overloaded`."""
    found: dict[str, str] = {}
    for kind, step in steps.items():
        outcome, code = ("error", "overloaded") if kind == "overloaded" else (kind, "none")
        found |= growth(f'llmpod_jobs_total{{{WORKER},route="native",outcome="{outcome}",code="{code}"}}', step)
    return found


def queue(waiting: int, **workers: int) -> Series:
    found = dict(level(f'llmpod_endpoint_jobs{{{ENDPOINT},state="in_queue"}}', waiting))
    for state in ("idle", "ready", "running", "initializing"):
        found |= level(f'llmpod_endpoint_workers{{{ENDPOINT},state="{state}"}}', workers.get(state, 0))
    return found


def delivered(**steps: float) -> Series:
    found: dict[str, str] = {}
    for result in ("ok", "retried", "refused", "lost"):
        found |= growth(f'llmpod_delivery_total{{{WORKER},result="{result}"}}', steps.get(result, 0))
    return found


def slots(in_use: float) -> Series:
    return {
        **level(f'llmpod_slots{{{WORKER},state="in_use"}}', in_use),
        **level(f'llmpod_slots{{{WORKER},state="capacity"}}', 100),
    }


def tokens(per_s: float) -> Series:
    return growth(f'llmpod_tokens_total{{{WORKER},kind="generated"}}', per_s * 15)


JOBS = "sum by (endpoint) (rate(llmpod_jobs_total[5m]))"
PER_WORKER = ("endpoint", "worker")
LOG = 'the worker\'s log in RunPod\'s console, filtered by "event":"end"'
WATCH = "`llmpod loadtest watch --endpoint-id ID --once`"

RULES = (
    Rule(
        "LlmpodProbeSlow",
        "page",
        quantile(0.95, "llmpod_probe_total_seconds", "10m"),
        8,
        "seconds",
        2,
        "One in twenty probe jobs takes longer than 8 s from sending to result: clients wait too long.",
        f"{WATCH}: is it the queue (probe_delay) or the worker (probe_exec)?",
        "Queue: raise the endpoint's max workers. Worker: see LlmpodExecutionSlow.",
        probe("total", 10),
        probe("total", 8),
    ),
    Rule(
        "LlmpodProbeSlowing",
        "warn",
        quantile(0.95, "llmpod_probe_total_seconds", "10m"),
        7,
        "seconds",
        2,
        "One in twenty probe jobs takes longer than 7 s: LlmpodProbeSlow is near.",
        f"{WATCH}: is it the queue (probe_delay) or the worker (probe_exec)?",
        "Look at the dashboard's row of the last hours; add workers before it becomes a page.",
        probe("total", 8),
        probe("total", 7),
    ),
    Rule(
        "LlmpodProbeFails",
        "page",
        "sum by (endpoint) (increase(llmpod_probe_failures_total[5m])) > {threshold}",
        1.5,
        "probes",
        0,
        "At least two probe jobs within five minutes were not completed: clients' jobs fail as well.",
        f"{WATCH}: its last line says why the probe failed.",
        "No workers: see LlmpodNoWorker. Failed jobs: see LlmpodJobsFail. 401: the API key was changed.",
        growth(f"llmpod_probe_failures_total{{{ENDPOINT}}}", 0.1),
        growth(f"llmpod_probe_failures_total{{{ENDPOINT}}}", 0.05),
    ),
    Rule(
        "LlmpodJobsFail",
        "page",
        f'sum by (endpoint) (rate(llmpod_jobs_total{{outcome=~"error|timeout"}}[5m])) / {JOBS} > {{threshold}}',
        0.01,
        "share",
        2,
        "More than 1 % of the jobs end as error or timeout. Refused and blocked jobs are not among them.",
        f'{LOG} and "ok":false: which `error` is it?',
        "engine_dead, engine_stalled: let RunPod replace the worker, keep the `fatal` line. overloaded: see "
        "LlmpodOverloaded. internal_error: the `bug` event has the traceback; roll back if it began with a release.",
        jobs(ok=98.8, error=1.2),
        jobs(ok=99.2, error=0.8),
    ),
    Rule(
        "LlmpodExecutionSlow",
        "page",
        quantile(0.95, "llmpod_job_seconds", "5m"),
        5,
        "seconds",
        5,
        "One in twenty answers takes a worker longer than 5 s.",
        "the dashboard: time to first token, tokens/s and slots of each worker.",
        "All slots in use: add workers. Few in use and slow: compare `prefill_ms` and `decode_ms` of the `end` lines "
        "with those of the last release; roll back if they grew with it.",
        observed("llmpod_job_seconds", f'{WORKER},route="native"', WORKER_SECONDS, 7),
        observed("llmpod_job_seconds", f'{WORKER},route="native"', WORKER_SECONDS, 5),
    ),
    Rule(
        "LlmpodNoWorker",
        "page",
        'sum by (endpoint) (llmpod_endpoint_jobs{state="in_queue"}) > {threshold} and on (endpoint) '
        'sum by (endpoint) (llmpod_endpoint_workers{state=~"idle|ready|running"}) == 0',
        0,
        "jobs",
        2,
        "Jobs wait and no worker is there to take them.",
        f"{WATCH}: are workers initializing, throttled, unhealthy, or none at all?",
        "None: is max workers 0, or the balance empty? Throttled: no GPU of these types is free; add types or regions. "
        "Initializing for minutes: read the worker's log (`loading`). Unhealthy: see LlmpodWorkerUnhealthy.",
        queue(3, initializing=1),
        queue(3, running=1, ready=1),
    ),
    Rule(
        "LlmpodResultLost",
        "page",
        'sum by (endpoint) (increase(llmpod_delivery_total{result="lost"}[10m])) > {threshold}',
        0,
        "results",
        0,
        "A job's result could not be delivered for RESULT_DELIVERY_TIMEOUT: its client waits in vain, and was billed.",
        'the worker\'s log, filtered by "event":"result_lost": job, size and cause.',
        "Check RunPod's status page. Send the jobs again. If it goes on, raise RESULT_DELIVERY_TIMEOUT.",
        delivered(ok=5, lost=0.1),
        delivered(ok=5, retried=1),
    ),
    Rule(
        "LlmpodWorkerUnhealthy",
        "page",
        'sum by (endpoint) (llmpod_endpoint_workers{state="unhealthy"}) > {threshold}',
        0,
        "workers",
        2,
        "A worker starts and ends again and again: the worker cannot start as it is configured.",
        'the worker\'s log, filtered by "event":"fatal": `cause`, `cure` and `setting`.',
        "Do what `cure` says. If it began with a release, roll back.",
        level(f'llmpod_endpoint_workers{{{ENDPOINT},state="unhealthy"}}', 1),
        level(f'llmpod_endpoint_workers{{{ENDPOINT},state="unhealthy"}}', 0),
    ),
    Rule(
        "LlmpodWatchBlind",
        "warn",
        "sum by (endpoint) (llmpod_endpoint_up) < {threshold}",
        1,
        "1",
        2,
        "RunPod's /health has not answered `llmpod loadtest watch` with counts: the endpoint's alerts see nothing.",
        f"{WATCH}: it says what came instead.",
        "401: the API key was changed. 404: the endpoint's id. Otherwise RunPod's status page.",
        level(f"llmpod_endpoint_up{{{ENDPOINT}}}", 0),
        level(f"llmpod_endpoint_up{{{ENDPOINT}}}", 1),
    ),
    Rule(
        "LlmpodQueueDelay",
        "warn",
        quantile(0.5, "llmpod_probe_delay_seconds", "10m"),
        2,
        "seconds",
        5,
        "Half of the probe jobs wait longer than 2 s in RunPod's queue.",
        f"{WATCH}: workers by state, and jobs in the queue.",
        "Busy workers: raise max workers, or lower the scaler's value. Cold starts: raise min workers or the idle "
        "timeout.",
        probe("delay", 3),
        probe("delay", 2),
    ),
    Rule(
        "LlmpodTotalSlow",
        "warn",
        quantile(0.5, "llmpod_probe_total_seconds", "10m"),
        5,
        "seconds",
        5,
        "Half of the probe jobs take longer than 5 s from sending to result.",
        f"{WATCH}: is it the queue (probe_delay) or the worker (probe_exec)?",
        "As for LlmpodQueueDelay, or for LlmpodExecutionSlow.",
        probe("total", 6),
        probe("total", 5),
    ),
    Rule(
        "LlmpodQueueStands",
        "warn",
        'sum by (endpoint) (llmpod_endpoint_jobs{state="in_queue"}) > {threshold} and on (endpoint) '
        'sum by (endpoint) (llmpod_endpoint_workers{state="running"}) > 0 and on (endpoint) '
        'sum by (endpoint) (llmpod_endpoint_workers{state=~"idle|initializing"}) == 0',
        0,
        "jobs",
        0.5,
        "Jobs wait, every worker is busy, and none is starting.",
        "the endpoint's max workers, and whether its scaler should have acted.",
        "Raise max workers. A longer peak: raise MAX_NUM_SEQS if the KV cache has room for it (`ready` in the log).",
        queue(1, running=2),
        queue(1, running=2, initializing=1),
    ),
    Rule(
        "LlmpodColdStarts",
        "warn",
        "sum by (endpoint) (increase(llmpod_endpoint_cold_starts_total[5m])) > {threshold}",
        5,
        "starts",
        0,
        "More than five workers were started within five minutes: many jobs pay for a cold start.",
        f"{WATCH}, and the endpoint's idle timeout and min workers.",
        "Raise the idle timeout (180 s is a beginning), or min workers; see that FlashBoot is on.",
        growth(f"llmpod_endpoint_cold_starts_total{{{ENDPOINT}}}", 0.3),
        growth(f"llmpod_endpoint_cold_starts_total{{{ENDPOINT}}}", 0.2),
    ),
    Rule(
        "LlmpodOverloaded",
        "warn",
        f'sum by (endpoint) (rate(llmpod_jobs_total{{code="overloaded"}}[5m])) / {JOBS} > {{threshold}}',
        0.05,
        "share",
        5,
        "More than 5 % of the jobs fail because no engine slot became free in time.",
        "the dashboard: slots in use and waiting of each worker.",
        "Lower or unset MAX_CONCURRENCY, so that RunPod keeps what a worker cannot run; raise max workers.",
        jobs(ok=94, overloaded=6),
        jobs(ok=96, overloaded=4),
    ),
    Rule(
        "LlmpodDeliveryRetries",
        "warn",
        'sum by (endpoint) (rate(llmpod_delivery_total{result!="ok"}[5m])) / '
        "sum by (endpoint) (rate(llmpod_delivery_total[5m])) > {threshold}",
        0.1,
        "share",
        5,
        "More than 10 % of the results do not reach RunPod at the first attempt.",
        "RunPod's status page; the worker's log for `result_lost` and `result_too_large`.",
        "Wait, if RunPod has an incident. Answers that are too large: lower MAX_TOKENS_MAX or stream them.",
        delivered(ok=88, retried=12),
        delivered(ok=92, retried=8),
    ),
    Rule(
        "LlmpodDecodingSlow",
        "warn",
        'sum by (endpoint, worker) (rate(llmpod_tokens_total{kind="generated"}[5m])) < {threshold} and on '
        '(endpoint, worker) sum by (endpoint, worker) (avg_over_time(llmpod_slots{state="in_use"}[5m])) > 0.8',
        30,
        "tokens",
        5,
        "A worker that had work all the time generated fewer than 30 tokens a second.",
        "`decode_ms` and `tokens_generated` of the `end` lines of this worker, against another's.",
        "One worker alone: terminate it, the GPU may be throttled. All of them: compare with the last release.",
        {**tokens(25), **slots(1)},
        {**tokens(35), **slots(1)},
        PER_WORKER,
    ),
    Rule(
        "LlmpodSlotsNearlyFull",
        "warn",
        'sum by (endpoint, worker) (llmpod_slots{state="in_use"}) / '
        'sum by (endpoint, worker) (llmpod_slots{state="capacity"}) > {threshold}',
        0.8,
        "share",
        5,
        "A worker uses more than 80 % of its engine slots: little more and jobs wait for each other.",
        "the dashboard: slots of the other workers, and jobs in RunPod's queue.",
        "Raise max workers, or lower the scaler's value so that RunPod starts the next one earlier.",
        slots(85),
        slots(75),
        PER_WORKER,
    ),
    Rule(
        "LlmpodLogLost",
        "warn",
        "sum by (endpoint, worker) (increase(llmpod_log_lines_lost_total[10m])) > {threshold}",
        0,
        "lines",
        0,
        "A worker could not write lines of its log.",
        "the free space of the worker's disk.",
        "Raise the container disk of the template; terminate the worker.",
        growth(f"llmpod_log_lines_lost_total{{{WORKER}}}", 0.1),
        level(f"llmpod_log_lines_lost_total{{{WORKER}}}", 7),
        PER_WORKER,
    ),
)
