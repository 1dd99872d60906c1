"""Fault injection: slow networks, lost connections, refusals, kills, scarce machines.

`Faults` is plain data that can be replaced while the endpoint runs; the functions beside it decide, given a random
number generator, and touch nothing.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

TakePolicy = Literal["fill", "one", "random"]
Operation = Literal["job-take", "job-stop", "job-stream", "job-done", "ping", "http", "*"]

DROP = "drop"
"""Close the connection before the call has any effect."""
DROP_AFTER = "drop-after"
"""Let the call take effect, then close the connection without an answer. For job-take the same as DROP."""


class Fault(BaseModel):
    """One way in which worker-side calls go wrong: `probability` of the calls to `operation` end in `outcome`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: Operation
    outcome: Annotated[int, Field(ge=400, le=599)] | Literal["drop", "drop-after"]
    probability: float = Field(ge=0, le=1)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """From the form OPERATION:OUTCOME:PROBABILITY, for example job-done:503:0.1. Raises ValueError."""
        operation, outcome, probability = text.split(":")
        return cls.model_validate(
            {
                "operation": operation,
                "outcome": int(outcome) if outcome.isdigit() else outcome,
                "probability": float(probability),
            }
        )


class Faults(BaseModel):
    """The knobs. All off by default; `take_policy` alone has no neutral value (RunPod does not say what it does)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    take_policy: TakePolicy = Field(
        "fill", description="jobs per job-take-batch: as many as asked for, one, or a random number of them (assumed)"
    )
    post_latency_ms: float = Field(0, ge=0, description="added to every job-stream and job-done POST")
    post_jitter_ms: float = Field(0, ge=0, description="up to this much more, evenly distributed")
    network_latency_ms: float = Field(0, ge=0, description="added to every worker-side call")
    network_bytes_per_s: float = Field(
        0, ge=0, description="pace of worker-side bodies in both directions; 0: no limit"
    )
    faults: list[Fault] = Field(
        default_factory=list,
        description="OPERATION:OUTCOME:PROBABILITY, for example job-done:503:0.1 or job-take:drop:0.05 (of a load"
        " balancer: http and ping); outcome is a code from 400 to 599, 'drop' (no effect) or 'drop-after' (effect, no"
        " answer)",
    )
    kill_every_s: float = Field(0, ge=0, description="SIGKILL a random worker every so many seconds; 0: never")
    freeze_every_s: float = Field(0, ge=0, description="SIGSTOP a random worker every so many seconds; 0: never")
    cold_start_s: float = Field(0, ge=0, description="pause between the scaler's decision and the start of a process")
    machines: int | None = Field(None, ge=0, description="workers that can be had; those above it stay THROTTLED")
    seed: int | None = Field(None, description="seed of every random decision here")


def batch_size(policy: TakePolicy, asked: int, waiting: int, random: Random) -> int:
    """How many jobs one job-take gets: `asked` by the worker, `waiting` in the queue; 0 only when nothing waits.

    `random` draws from 1..asked, as the simulator in the SDK's own tests does.
    """
    available = min(asked, waiting)
    if available <= 1 or policy == "fill":
        return available
    if policy == "one":
        return 1
    return min(random.randint(1, asked), waiting)


def draw(faults: Faults, operation: str, random: Random) -> int | str | None:
    """The outcome that this call to `operation` meets: an HTTP status, DROP, DROP_AFTER, or None for a normal call."""
    for fault in faults.faults:
        if fault.operation in (operation, "*") and random.random() < fault.probability:
            return fault.outcome
    return None


def delay_s(faults: Faults, operation: str, size_bytes: int, random: Random) -> float:
    """Seconds by which a call is delayed: latency and jitter of POSTs, of the network, time for `size_bytes`."""
    delay_ms = faults.network_latency_ms
    if operation in ("job-stream", "job-done"):
        delay_ms += faults.post_latency_ms
        if faults.post_jitter_ms:
            delay_ms += random.uniform(0, faults.post_jitter_ms)
    if faults.network_bytes_per_s:
        delay_ms += 1000 * size_bytes / faults.network_bytes_per_s
    return delay_ms / 1000
