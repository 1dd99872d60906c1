"""Every option of the endpoint, once: type, default, range and help. The command line and the docs are made from this.

A field whose help says (assumed) stands for something RunPod does not document; the default is a guess, and the field
is there so that a test can make the other guess.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmpod import protocol
from llmpod.endpoint.environ import API_KEY_VARIABLE, environment_api_key, inherited_environment
from llmpod.endpoint.faults import Faults

Milliseconds = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1)]


def default_command() -> list[str]:
    """`python -u -m llmpod.worker`, with the interpreter that runs the endpoint: a virtual environment is kept."""
    return [sys.executable, "-u", "-m", "llmpod.worker"]


class Options(BaseModel):
    """Options of one endpoint. Durations end in `_s` or `_ms`, sizes in `_bytes`; names follow RunPod's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Where
    kind: Literal["queue", "load-balancer"] = Field("queue", description="which of RunPod's endpoint types")
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs an API key")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    endpoint_id: str = Field(
        "local", pattern="^[A-Za-z0-9_-]{1,64}$", description="the endpoint's name in the URL: /v2/NAME/run"
    )
    api_key: str | None = Field(
        default_factory=environment_api_key,
        repr=False,
        description=f"require this key as 'Authorization: Bearer KEY' (default: ${API_KEY_VARIABLE}, else no check)",
    )

    page_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="load-balancer: port of the page, /metrics, /control and /v2/NAME/health, because every path of the"
        " port itself is the worker's; 0 picks a free one (default: the next port)",
    )

    # Workers
    command: list[str] = Field(
        default_factory=default_command, min_length=1, description="command that starts one worker process"
    )
    cwd: Path = Field(Path(), description="working directory of the worker processes")
    env: dict[str, str] = Field(
        default_factory=inherited_environment, repr=False, description="environment of the worker processes"
    )
    worker_log_level: str = Field(
        "INFO", description="RUNPOD_LOG_LEVEL of the workers; the SDK's default DEBUG prints outputs (assumed)"
    )
    worker_log_lines: int = Field(2000, ge=1, description="log lines kept per worker")
    fleet: bool = Field(True, description="start worker processes; off: workers are started by somebody else")
    ping_interval_ms: int = Field(10_000, ge=1000, description="RUNPOD_PING_INTERVAL of the workers (assumed)")

    # Scaling
    workers_min: int = Field(0, ge=0, description="workers that are always on")
    workers_max: int = Field(3, ge=0, description="most workers at any time")
    idle_timeout_s: Seconds = Field(
        5,
        description="seconds without a job or request after which a worker is stopped (not with REQUEST_COUNT on a"
        " queue)",
    )
    scaler_type: Literal["QUEUE_DELAY", "REQUEST_COUNT"] = Field(
        "QUEUE_DELAY", description="scaling rule of a queue; a load balancer has REQUEST_COUNT"
    )
    scaler_value: float = Field(
        4, ge=0.5, description="QUEUE_DELAY: seconds a job may wait; REQUEST_COUNT: jobs or requests per worker"
    )
    scale_period_s: float = Field(0.5, gt=0, description="seconds between two looks of the scaler (assumed)")
    scale_step: int = Field(1, ge=1, description="most workers QUEUE_DELAY adds at one look (assumed)")
    first_worker_at_once: bool = Field(
        True, description="a job starts the first worker at once; off: after scaler_value seconds (assumed)"
    )
    grace_s: Seconds = Field(30, description="seconds between SIGTERM and SIGKILL (assumed)")
    init_timeout_s: Seconds = Field(420, description="seconds a worker may take until its first job-take")
    crash_backoff_max_s: Seconds = Field(60, description="longest pause before a crashing command is started again")

    # Jobs
    execution_timeout_ms: Milliseconds = Field(
        600_000, description="time a job may run unless its policy says otherwise"
    )
    job_ttl_ms: Milliseconds = Field(
        86_400_000, description="lifespan of a job from submission unless its policy says otherwise"
    )
    policy_bounds: bool = Field(
        True, description="refuse executionTimeout below 5 s and ttl below 10 s, or above 7 days"
    )
    retention_async_s: Seconds = Field(1800, description="seconds a finished /run job is kept")
    retention_sync_s: Seconds = Field(60, description="seconds a finished /runsync or /openai job is kept")
    retention_max_s: Seconds = Field(1800, description="longest retention that /status?ttl= can ask for (assumed)")
    ttl_outcome: Literal["DELETE", "TIMED_OUT"] = Field(
        "DELETE", description="a job that outlives its ttl in the queue is deleted (404) or TIMED_OUT (docs disagree)"
    )
    ttl_running_outcome: Literal["DELETE", "TIMED_OUT", "IGNORE"] = Field(
        "DELETE",
        description="a job that outlives its ttl on a worker is stopped and deleted, stopped and TIMED_OUT, or goes on"
        " (assumed)",
    )
    timeout_outcome: Literal["TIMED_OUT", "FAILED"] = Field(
        "TIMED_OUT", description="state of a job that exceeds its executionTimeout (docs disagree)"
    )
    timeout_error: str = Field(
        "job exceeded its executionTimeout of {seconds} s",
        description="error text of such a job; {seconds} is replaced (assumed)",
    )
    max_retries: int = Field(
        3, ge=0, description="times a job whose worker died is queued again before it is FAILED (assumed)"
    )
    dead_after_pings: int = Field(
        3, ge=0, description="ping intervals of silence after which a worker is dead; 0: never (assumed)"
    )
    lost_after_pings: int = Field(
        2,
        ge=0,
        description="pings in a row that omit a job its worker holds until it is queued again; 0: never (assumed)",
    )
    stop_ignored_s: Seconds = Field(
        30, description="seconds a worker may keep reporting a stopped job until it is restarted; 0: for ever (assumed)"
    )
    any_input: bool = Field(False, description="accept an 'input' that is not an object (assumed)")
    worker_fields: Literal["input", "request", "full"] = Field(
        "request",
        description="what a worker gets: id and input; also webhook, webhookV2, policy and s3Config where the client"
        " sent them; or delayTime, executionTime, error, retries and status as well (assumed)",
    )
    bad_result_outcome: Literal["COMPLETED", "FAILED"] = Field(
        "COMPLETED",
        description="state of a job whose result is above the limit or unreadable: without output, as seen for large"
        " results, or with an error (assumed)",
    )
    nan_bodies: Literal["refuse", "null"] = Field(
        "refuse", description="NaN and Infinity in what a worker posts: unreadable, or read as null (assumed)"
    )

    # Waiting
    take_hold_s: float = Field(20, gt=0, lt=90, description="seconds job-take is held open (assumed)")
    stop_hold_s: float = Field(20, gt=0, lt=90, description="seconds job-stop is held open (assumed)")
    stream_hold_ms: Milliseconds = Field(
        5000, description="/stream waits this long for a chunk when no ?wait= is given (assumed)"
    )
    sync_wait_ms: Milliseconds = Field(
        90_000, description="/runsync and /status-sync wait this long when no ?wait= is given"
    )
    openai_wait_s: Seconds = Field(
        600, description="/openai/* waits this long for a job's first answer, then 504 (assumed)"
    )

    # Limits
    run_limit_bytes: Bytes = Field(protocol.RUN_LIMIT_BYTES, description="largest /run request or result")
    runsync_limit_bytes: Bytes = Field(
        protocol.RUNSYNC_LIMIT_BYTES, description="largest /runsync or /openai request or result"
    )
    chunk_limit_bytes: Bytes = Field(protocol.CHUNK_LIMIT_BYTES, description="largest stream chunk")
    chunk_overflow: Literal["split", "reject", "accept"] = Field(
        "split",
        description="a larger stream chunk: text is split and anything else refused; or all are refused; or accepted"
        " (assumed)",
    )
    rate_limits: bool = Field(True, description="answer 429 above RunPod's documented rates")
    requests_per_worker: int = Field(
        0, ge=0, description="a rate limit grows to this many requests per running worker (assumed)"
    )

    # Answers that nobody documents
    running_name: Literal["IN_PROGRESS", "RUNNING"] = Field(
        "IN_PROGRESS", description="status of a running job in answers to clients (docs disagree)"
    )
    requests_shape: Literal["object", "list"] = Field(
        "object", description="/requests answers an object around the list of jobs, or the list (assumed)"
    )
    failed_runsync_status: int = Field(
        200, ge=200, le=599, description="HTTP code of a /runsync whose job FAILED (assumed)"
    )
    failed_openai_status: int = Field(
        500, ge=200, le=599, description="HTTP code of an /openai call whose job FAILED (assumed)"
    )
    openai_disconnect_cancels: bool = Field(
        True, description="a client that leaves an /openai call cancels its job (assumed)"
    )
    openai_unwrap: Literal["all", "list", "none"] = Field(
        "all",
        description="which output is the body of an /openai answer: [x] and text become what is inside; [x] alone;"
        " or the output as it is (assumed)",
    )
    openai_objects: Literal["event", "raw"] = Field(
        "event", description="a streamed /openai chunk that is no text: as one server-sent event, or as JSON (assumed)"
    )
    openai_stream_failure: Literal["event", "event-done", "end", "cut"] = Field(
        "event",
        description="a job that fails when its stream has begun: one last event with the error; then [DONE]; the"
        " stream ends without a word; or the connection is cut (assumed)",
    )
    late_progress: Literal["ignore", "overwrite"] = Field(
        "ignore",
        description="a progress update after the job ended; 'overwrite' shows IN_PROGRESS again, as seen in 2023",
    )
    webhook_body: Literal["status", "output"] = Field(
        "status", description='a webhook gets the status object, or {"output": ...} alone (assumed)'
    )
    webhook_tells: Literal["all", "not-cancelled", "completed"] = Field(
        "all", description="of which ends a webhook is told (assumed)"
    )
    webhook_v2: bool = Field(
        False, description="call a request's webhookV2 as well; off: it only reaches the worker (assumed)"
    )
    webhook_attempts: int = Field(3, ge=1, description="times a webhook is tried until it answers 200")
    webhook_pause_s: Seconds = Field(10, description="seconds between two tries of a webhook")

    # Load balancer
    health_check_path: str = Field(
        "/ping", pattern="^/", description="load-balancer: HEALTH_CHECK_PATH, where a worker says how it is"
    )
    health_port: Literal["same", "own"] = Field(
        "same", description="load-balancer: PORT_HEALTH of a worker is its PORT, or another one"
    )
    health_period_s: float = Field(
        1, gt=0, description="load-balancer: seconds between two health checks of a worker (assumed)"
    )
    health_timeout_s: float = Field(
        5, gt=0, description="load-balancer: seconds after which a health check has failed (assumed)"
    )
    health_failures: int = Field(
        1, ge=1, description="load-balancer: failed health checks in a row that end the routing to a worker (assumed)"
    )
    unhealthy_timeout_s: Seconds = Field(
        480, description="load-balancer: seconds a worker may be without a healthy check until it is ended"
    )
    worker_capacity: int = Field(
        0, ge=0, description="load-balancer: requests that a worker gets at once; 0: no limit (assumed)"
    )
    worker_wait_s: Seconds = Field(120, description="load-balancer: seconds a request may wait for a worker")
    affinity_wait_s: Seconds = Field(
        300, description="load-balancer: the same, for a request that asks for one worker (strict affinity)"
    )
    no_worker_status: int = Field(
        400, ge=400, le=599, description="load-balancer: HTTP code when that time is over (an older page of the docs)"
    )
    waiting_max: int = Field(
        1000, ge=0, description="load-balancer: requests that may wait at once; one more is answered 429 (assumed)"
    )
    request_timeout_s: Seconds = Field(330, description="load-balancer: seconds a worker may take for a request")
    request_timeout_status: int = Field(
        524, ge=400, le=599, description="load-balancer: HTTP code when that time is over (an older page of the docs)"
    )
    payload_limit_bytes: Bytes = Field(
        protocol.LOAD_BALANCER_LIMIT_BYTES, description="load-balancer: largest request or response"
    )
    payload_limit_status: int = Field(
        413, ge=400, le=599, description="load-balancer: HTTP code of a request above it (assumed)"
    )
    large_response: Literal["refuse", "pass"] = Field(
        "refuse",
        description="load-balancer: a response above it: 502, or cut where it has begun; or passed on (assumed)",
    )
    forward_authorization: bool = Field(
        False, description="load-balancer: workers get the Authorization header, which has the API key (assumed)"
    )

    # Records
    journal: str = Field(
        "-",
        description="where the JSON line per job transition or request goes: a path, '-' for stdout, '' for nowhere",
    )
    console: bool = Field(True, description="show workers' logs and starts and ends of workers on stderr")

    faults: Faults = Field(default_factory=Faults, description="what production does to a worker; see --help, Faults")

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        if self.workers_min > self.workers_max:
            raise ValueError(f"workers_min ({self.workers_min}) is above workers_max ({self.workers_max})")
        if self.kind == "load-balancer":
            if "scaler_type" in self.model_fields_set and self.scaler_type != "REQUEST_COUNT":
                raise ValueError("scaler_type: a load balancer has no queue, only REQUEST_COUNT")
            if not self.fleet:
                raise ValueError("fleet: a load balancer starts its workers, to know their ports")
        return self

    @property
    def command_line(self) -> str:
        return shlex.join(self.command)
