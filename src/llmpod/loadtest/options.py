"""Options of all commands: a field per option, with its default and its help."""

from dataclasses import dataclass

from llmpod.loadtest.flags import Count, Duration, Levels, Number, Positive, Share, option, repeated

PROG = "llmpod loadtest"
EPILOG = """\
exit codes:  0 pass   1 the run, or one of its phases, has no result   2 usage   3 an SLO failed
             4 stopped by a guard   5 the measurement is not valid   130 interrupted (the report is still written)

commands:    run (the default), report DIR, compare A B, resume DIR, capacity DIR...,
             quality --dataset FILE, watch, smoke   each has its own --help

examples:
  llmpod loadtest --endpoint-id abc123 --concurrency 1 4 8 --runs 40 --slo 'total.p95<8s'
  llmpod loadtest --base-url http://127.0.0.1:8000/v2/local --request-rate 2 --arrival poisson --duration 5m
  llmpod loadtest --soak 2h --concurrency 2 --slo-preset soak --gpu-price 0.40 --max-cost 2
"""
QUALITY_EPILOG = """\
exit codes:  0 the gate is met   1 the run could not be done   2 usage   3 the gate is not met   4 stopped by a guard
             5 more than 5 % of the jobs had no answer, or none was judged   130 interrupted
"""
SMOKE_EPILOG = """\
checks:      reachable, health, cold, warm, stream, openai, parallel, too_long, blocked (with --blocked-prompt)
exit codes:  0 every check passed   1 the endpoint does not answer   2 usage   3 a check failed
"""
PRESETS: dict[str, tuple[str, ...]] = {
    "career": (
        "exec.p50<=3000ms",
        "exec.p95<=5000ms",
        "total.p50<=5000ms",
        "total.p95<=8000ms",
        "delay.p50<=2000ms",
        "delay.p95<=4000ms",
        "success_rate>=99%",
        "blocked_rate<1%",
        "tokens_per_s>=30",
    ),
    "soak": ("total.p50<=4000ms", "total.p95<=6000ms", "error_rate<1%", "drift<=10%"),
}
"""Sets of objectives, by the name that --slo-preset gives them."""
SMOKE_CHECKS = ("reachable", "health", "cold", "warm", "stream", "openai", "parallel", "too_long", "blocked")
"""Checks of the smoke test, in their order."""


@dataclass(kw_only=True)
class ViewOptions:
    """How recorded jobs are judged and shown."""

    slo: list[str] = repeated(
        "total.p95<8s, delay.p50<2s, error_rate<1%%; repeatable", metavar="EXPR", group="judging and showing"
    )
    slo_preset: list[str] = repeated(choices=list(PRESETS))
    goodput: list[str] = option(
        "a good request meets all: ttft:500 total:8000", default=[], nargs="+", metavar="METRIC:MS"
    )
    percentiles: str = option("", "--metric-percentiles", default="50,90,95,99", metavar="P,P")
    gpu_price: Number | None = option("of one worker", metavar="USD/H")
    slice: Duration | None = option("width of the time slices")
    scaler_value: Number | None = option("REQUEST_COUNT scaler: jobs per worker", metavar="N")
    workers_min: Count = option(default=0)
    workers_max: Count | None = option()
    allow_worker_change: bool = option("judge although the worker count changed", default=False)
    metric: str | None = option("show this latency only (all are recorded)", choices=["total", "exec", "delay"])
    format: str = option(default="table", choices=["table", "json", "quiet"])
    out: str | None = option("default: runs/<UTC time>; of report: DIR", "--output-dir", metavar="DIR")
    csv: str | None = option("a copy of requests.csv", metavar="FILE")
    junit: str | None = option("the objectives as test cases, for CI", metavar="FILE")
    summary: str | None = option("append a summary in Markdown, as to $GITHUB_STEP_SUMMARY", metavar="FILE")


@dataclass(kw_only=True)
class ReportOptions(ViewOptions):
    """The report of a recorded run, again or with other objectives."""

    directory: str | None = option(nargs="?", metavar="DIR", positional=True)


@dataclass(kw_only=True)
class UiOptions:
    """What is shown while a run goes on."""

    ui: str = option(default="auto", choices=["auto", "live", "plain", "none"], group="progress")


@dataclass(kw_only=True)
class ResumeOptions(UiOptions):
    """Goes on where a run stopped, with the options it was started with."""

    directory: str = option(metavar="DIR", positional=True)


@dataclass(kw_only=True)
class RunOptions(UiOptions, ViewOptions):
    """Load tests for any RunPod endpoint."""

    endpoint_id: str | None = option(
        "default: RUNPOD_ENDPOINT_ID", group="endpoint (the key is read from RUNPOD_API_KEY only)"
    )
    base_url: str | None = option("URL up to and with the endpoint's id, for another server than RunPod's", "--url")
    mode: str = option(default="runsync", choices=["runsync", "run", "stream", "openai", "http", "sync", "async"])
    openai_path: str = option("route of --mode openai", default="/openai/v1/chat/completions", metavar="PATH")
    http_path: str = option(
        "route of --mode http, which is a load-balancing endpoint's (or any server's at --base-url)",
        "--path",
        default="/v1/chat/completions",
        metavar="PATH",
    )
    no_stream: bool = option("--mode openai and http: ask for the answer in one piece", default=False)

    concurrency: list[Levels] | None = option(
        "clients; several numbers are phases: 1 4 8",
        "-c",
        nargs="+",
        group="load: closed loop (clients that wait for their answers)",
    )
    ramp_up: Duration = option("start the clients one by one over TIME", default=0.0)
    sweep: str | None = option(
        "climb a ladder of clients until an SLO breaks or nothing is gained", metavar="auto|A..B|A,B,C"
    )
    soak: Duration | None = option("like --duration, with time slices; the worker count may change")

    request_rate: Number | None = option(
        "", "--rate", "-q", metavar="PER_S", group="load: open loop (requests that leave on schedule)"
    )
    arrival: str | None = option("default: poisson", "--arrival-pattern", choices=["constant", "poisson", "gamma"])
    burstiness: Number | None = option("gamma shape: 1 Poisson, below 1 burstier", "--arrival-smoothness", metavar="K")
    sweep_rate: str | None = option(
        "climb a ladder of rates (A..B: in steps of a half) until an SLO breaks or the queue grows",
        metavar="A..B|A,B,C",
    )
    ramp: str | None = option("rate from A to B per second over --duration", metavar="A..B")
    stages: str | None = option("straight lines between rates, as in k6: 2m:2,10m:8,2m:0", metavar="TIME:RATE,...")
    replay: str | None = option("due times: one number (s) per line, or JSON lines with 'timestamp'", metavar="FILE")
    time_scale: Number = option("--replay: 2 is twice as slow", default=1.0, metavar="X")
    max_concurrency: Positive | None = option("cap on jobs in flight; what it delays is counted")

    runs: Positive | None = option(
        "measured requests per phase (40)", "--num-requests", "--num-prompts", "-n", group="length"
    )
    duration: Duration | None = option("measured time per phase, like 30m", "-z")
    warmup_requests: Count | None = option("default: one per client; 1 in an open loop", "--num-warmups")
    warmup_duration: Duration = option(default=0.0)
    cooldown: Duration = option("open loop: load goes on unmeasured at the end", default=0.0)
    settle: Duration = option("longest wait for an empty queue between phases (30s)", default=30.0)

    timeout: Duration = option("of one job, then it is cancelled (120s)", default=120.0, group="jobs")
    wait: Duration = option("/runsync's wait (90s, RunPod's default)", default=90.0)
    retries: Count = option("of a submit that met 429, 5xx, no worker or no connection, in any mode (0)", default=0)
    poll_interval: Duration | None = option("poll /status at a fixed gap")
    poll: str = option("auto: long poll where the service has it", default="auto", choices=["auto", "adaptive"])

    prompt: str = option(
        default="Explain in a few sentences how a queue with several workers behaves under load.", group="payload"
    )
    dataset: str | None = option(
        "JSON lines with prompt, messages or input; also weight, name and max_tokens: a mix", "--mix", metavar="FILE"
    )
    input_len: Positive | None = option("made-up prompts of that many words", "--isl", metavar="WORDS")
    max_tokens: Positive = option("", "--output-len", "--osl", default=150)
    temperature: float = option(default=0.2)
    model: str | None = option("for --mode openai and http")
    payload_template: str | None = option("the whole JSON body, with {{prompt}} and {{index}}", metavar="FILE")
    extra_body: str | None = option("more fields for the input (or the OpenAI body)", metavar="JSON")
    prompt_tag: str = option(
        "makes prompts differ, against prefix caches", default="front", choices=["front", "end", "none"]
    )
    seed: int = option(default=0)
    expect_blocked: bool = option(
        "what the worker's policy blocks is a success (demand it with --slo 'blocked_rate>=100%%')", default=False
    )

    dry_run: bool = option("say what would be sent and cost; send nothing", default=False, group="guards")
    max_cost: Number | None = option("needs --gpu-price", metavar="USD")
    max_error_rate: Share | None = option("like 5%%, after 20 jobs")
    abort_on_fail: bool = option("stop as soon as an SLO is certain to fail or does so on 20 jobs", default=False)
    limits: str = option("RunPod's rate limits, kept on this side", default="runpod", choices=["runpod", "off"])
    purge_on_abort: bool = option("also empty the endpoint's queue, other people's jobs included", default=False)

    metadata: list[str] = repeated("kept in run.json", metavar="K=V", group="records")
    health_interval: Duration = option("0 asks nothing", default=2.0)


@dataclass(kw_only=True)
class CompareOptions:
    """The difference between two runs, with its interval."""

    a: str = option(metavar="A", positional=True)
    b: str = option(metavar="B", positional=True)
    percentiles: str = option(default="50,95", metavar="P,P")
    fail_on_slower: Share | None = option("exit 3 when total is certainly slower by more than this")
    fail_on_worse: bool = option("quality runs: exit 3 when a pass rate clearly fell", default=False)
    format: str = option(default="table", choices=["table", "json"])


@dataclass(kw_only=True)
class QualityOptions:
    """Sends the rows of a data set and judges each answer by what the row expects of it."""

    dataset: str = option("JSON lines of {id, input, expect}, or: career", required=True, metavar="FILE")
    gate: str | None = option("conditions such as 'leaks == 0', or: career", metavar="FILE")
    repeat: Positive = option("send each row N times (1)", default=1)
    concurrency: Positive = option("jobs at a time (3)", "-c", default=3)
    endpoint_id: str | None = option("default: RUNPOD_ENDPOINT_ID")
    base_url: str | None = option("full URL of another server than RunPod's", "--url")
    mode: str = option(default="runsync", choices=["runsync", "run"])
    timeout: Duration = option("of one job (120s)", default=120.0)
    retries: Count = option("of a submit that was refused (2)", default=2)
    limits: str = option("RunPod's rate limits", default="runpod", choices=["runpod", "off"])
    out: str | None = option("default: runs/<UTC time>-quality", "--output-dir", metavar="DIR")
    metadata: list[str] = repeated("kept in quality.json", metavar="K=V")
    format: str = option(default="table", choices=["table", "json", "quiet"])


@dataclass(kw_only=True)
class WatchOptions:
    """Serves what an endpoint's /health says, and how long probe jobs take, to Prometheus."""

    endpoint_id: str | None = option("default: RUNPOD_ENDPOINT_ID")
    base_url: str | None = option("full URL of another server than RunPod's", "--url")
    listen: str = option("address of /metrics (%(default)s)", default="127.0.0.1:9108", metavar="HOST:PORT")
    poll_every: Duration = option("between two looks at /health (5s)", default=5.0)
    probe_every: Duration | None = option("send a probe job so often; default: none. Each costs its worker's time")
    probe_input: str | None = option("input of the probe job", metavar="JSON")
    probe_timeout: Duration = option("after which a probe has failed (60s)", default=60.0)
    once: bool = option(
        "look once, with --probe-every probe once, print the metrics, exit 1 if one failed", default=False
    )
    limits: str = option("RunPod's rate limits", default="runpod", choices=["runpod", "off"])


@dataclass(kw_only=True)
class SmokeOptions:
    """Tells in about fifteen jobs whether a deployment works."""

    endpoint_id: str | None = option("default: RUNPOD_ENDPOINT_ID", group="endpoint (the key is RUNPOD_API_KEY)")
    base_url: str | None = option("full URL of another server than RunPod's", "--url")
    prompt: str = option(default="Name three colours.", group="jobs")
    max_tokens: Positive = option(default=64)
    model: str | None = option("of the OpenAI route; default: the first that the endpoint names")
    cold_timeout: Duration = option("for a first job, which may wait for a worker to start (1200s)", default=1200.0)
    timeout: Duration = option("for every other job (120s)", default=120.0)
    too_long_chars: Positive = option("of a prompt that must be refused (400000)", default=400_000)
    blocked_prompt: str | None = option("a prompt that the worker's profile must block", metavar="TEXT")
    skip: list[str] = repeated("a check that does not suit the endpoint", choices=list(SMOKE_CHECKS))
    record: str | None = option("write the deployment's record there if it passes", metavar="FILE", group="output")
    image: str | None = option("image and digest that were deployed, for the record")
    run: str | None = option("results of a load test, whose figures go into the record", metavar="DIR")
    format: str = option(default="table", choices=["table", "json"])
    limits: str = option("RunPod's rate limits", default="runpod", choices=["runpod", "off"])


@dataclass(kw_only=True)
class CapacityOptions:
    """How many workers hold a rate within an SLO, and what that costs, simulated from measured runs."""

    directories: list[str] = option(default=[], nargs="+", metavar="DIR", positional=True)
    request_rate: list[Number] = option("rates to answer for", "--rate", default=[], nargs="+", metavar="PER_S")
    slo: list[str] = repeated(metavar="EXPR")
    slo_preset: list[str] = repeated(choices=list(PRESETS))
    burstiness: Number = option("of the arrivals; 1 is Poisson", default=1.0, metavar="K")
    max_workers: Positive = option(default=50)
    gpu_price: Number | None = option(metavar="USD/H")
    duration: Duration = option("simulated time per answer (1h)", default=3600.0)
    scaler: str | None = option("also simulate an autoscaler: REQUEST_COUNT:1 or QUEUE_DELAY:4", metavar="TYPE:VALUE")
    workers_min: Count = option(default=0)
    idle_timeout: Duration = option(default=5.0)
    cold_start: Duration | None = option("default: as measured, else 60s")
    seed: int = option(default=0)
    format: str = option(default="table", choices=["table", "json"])
