"""Job: its request, its state, and the transitions that are allowed."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from llmpod.endpoint.state.signal import Signal

REGION = "u1"


class JobState(StrEnum):
    """RunPod's job states."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT})
RETRYABLE = frozenset({JobState.FAILED, JobState.TIMED_OUT})

# A job leaves a terminal state only through /retry, which RunPod allows for FAILED and TIMED_OUT.
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.IN_QUEUE: frozenset({JobState.IN_PROGRESS, JobState.CANCELLED, JobState.TIMED_OUT}),
    JobState.IN_PROGRESS: TERMINAL | {JobState.IN_QUEUE},
    JobState.COMPLETED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.FAILED: frozenset({JobState.IN_QUEUE}),
    JobState.TIMED_OUT: frozenset({JobState.IN_QUEUE}),
}


class IllegalMoveError(Exception):
    """A job was to move where it may not: an internal error of the endpoint, never of a caller."""


@dataclass(slots=True)
class JobRequest:
    """What a client asked for. `input` is JSON text; times are milliseconds, None for the endpoint's default."""

    input: bytes
    webhook: str | None = None
    execution_timeout_ms: int | None = None
    ttl_ms: int | None = None
    low_priority: bool = False
    extras: dict[str, Any] = field(default_factory=dict)
    """Fields that go to the worker beside id and input: s3Config, policy, webhook, webhookV2."""


@dataclass(slots=True, eq=False)
class Job:
    """One job. Clock readings (`*_s`) are monotonic seconds, `submitted_at` is Unix time; `output` is JSON text."""

    id: str
    request: JobRequest
    sync: bool
    submitted_s: float
    submitted_at: float
    execution_timeout_s: float
    ttl_s: float
    state: JobState = JobState.IN_QUEUE
    queued_s: float = 0.0
    taken_s: float | None = None
    first_chunk_s: float | None = None
    finished_s: float | None = None
    expires_s: float | None = None
    result_ttl_s: float | None = None
    worker_id: str | None = None
    retries: int = 0
    output: bytes | None = None
    error: str | None = None
    late_progress: bytes | None = None
    chunks: list[bytes] = field(default_factory=list)
    missed_pings: int = 0
    pinned: bool = False
    """A client has already read part of the answer over /openai: running the job again would repeat it."""
    changed: Signal = field(default_factory=Signal)
    """Sent with each chunk, and at the end."""

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def move(self, to: JobState) -> JobState:
        """Changes the state and returns the old one; nothing else may: one terminal state per life is kept here."""
        was = self.state
        if to not in MOVES[was]:
            raise IllegalMoveError(f"job {self.id}: {was} -> {to}")
        self.state = to
        return was

    @property
    def delay_ms(self) -> int | None:
        """Milliseconds in the queue, cold start included: submission until the worker that ran it took it."""
        return None if self.taken_s is None else round(1000 * (self.taken_s - self.submitted_s))

    @property
    def execution_ms(self) -> int | None:
        if self.taken_s is None or self.finished_s is None:
            return None
        return round(1000 * (self.finished_s - self.taken_s))

    def status(self) -> dict[str, Any]:
        """The status object of /status, /runsync and webhooks."""
        answer: dict[str, Any] = {"id": self.id, "status": self.state.value}
        if self.taken_s is not None and self.state is not JobState.IN_QUEUE:
            answer["delayTime"] = self.delay_ms
            answer["workerId"] = self.worker_id
            if self.finished_s is not None:
                answer["executionTime"] = self.execution_ms
        if self.output is not None:
            answer["output"] = orjson.Fragment(self.output)
        if self.error is not None:
            answer["error"] = self.error
        if self.retries:
            answer["retries"] = self.retries
        if self.late_progress is not None:
            answer |= {"status": JobState.IN_PROGRESS.value, "output": orjson.Fragment(self.late_progress)}
        return answer

    def for_worker(self, fields: str) -> bytes:
        """The object that job-take hands out; the SDK passes it to the handler unchanged, extra keys included.

        `fields` is the option worker_fields. `full` adds what the server of RunPod's hub tests sends.
        """
        given: dict[str, Any] = {"id": self.id, "input": orjson.Fragment(self.request.input)}
        if fields != "input":
            given |= self.request.extras
        if fields == "full":
            given |= {"delayTime": self.delay_ms, "executionTime": 0, "error": ""}
            given |= {"retries": self.retries, "status": self.state.value}
        return orjson.dumps(given)


def new_id(*, sync: bool) -> str:
    """`<uuid4>-<region>`, with `sync-` in front for /runsync: the shapes seen in production."""
    # uuid4 from our own 16 bytes: a third of the price of uuid.uuid4() on the hot path, and the same distribution.
    text = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
    return f"sync-{text}-{REGION}" if sync else f"{text}-{REGION}"
