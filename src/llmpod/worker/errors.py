"""Every way a job or a start can fail: one table, and the two exceptions that carry a row of it.

A job that fails is FAILED on RunPod, with the JSON of `JobError.as_json` in the status object's `error` string. It is a
string because the SDK turns a dict into a Python repr (runpod 1.12.0, serverless/modules/rp_job.py, `handle_job`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Failure:
    """One row of the table: what went wrong, said in HTTP's terms, and what the caller can do about it."""

    code: str
    status: int
    retryable: bool
    hint: str


class Code(enum.Enum):
    """The error codes a client can meet. The member's value is the row; `code` is stable, messages are not."""

    INVALID_INPUT = Failure("invalid_input", 400, False, "Correct the named field and send the job again.")
    UNKNOWN_FIELD = Failure("unknown_field", 400, False, "Remove the named field or correct its spelling.")
    PROMPT_TOO_LONG = Failure("prompt_too_long", 400, False, "Shorten the prompt, or raise MAX_PROMPT_CHARS.")
    CONTEXT_LENGTH_EXCEEDED = Failure(
        "context_length_exceeded", 400, False, "Shorten the prompt, lower max_tokens, or raise MAX_MODEL_LEN."
    )
    UNSUPPORTED = Failure("unsupported", 400, False, "This worker does not do that; see the message.")
    OVERLOADED = Failure("overloaded", 503, True, "Send the job again later.")
    TIMEOUT = Failure("timeout", 504, True, "Ask for fewer tokens, or raise the job's time limit.")
    RESULT_TOO_LARGE = Failure(
        "result_too_large", 413, False, "Ask for less in one job, or stream it with RETURN_AGGREGATE_STREAM=false."
    )
    WORKER_STOPPING = Failure("worker_stopping", 503, True, "Send the job again; another worker takes it.")
    GENERATION_FAILED = Failure("generation_failed", 500, True, "Send the job again; the worker's log has the cause.")
    ENGINE_DEAD = Failure("engine_dead", 503, True, "Send the job again; RunPod replaces this worker.")
    ENGINE_STALLED = Failure("engine_stalled", 503, True, "Send the job again; RunPod replaces this worker.")
    INTERNAL_ERROR = Failure("internal_error", 500, True, "Send the job again; the worker's log has the cause.")


class JobError(Exception):
    """A job's failure, as a value until it leaves the worker.

    `field` is the path of the offending input (``sampling_params.max_tokens``); `details` are numbers and names worth
    having in the reply. Neither may hold a prompt, an answer or a secret.
    """

    def __init__(self, code: Code, message: str, *, field: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.failure = code.value
        self.code = code
        self.message = message
        self.field = field
        self.details = details

    def as_dict(self, job_id: str) -> dict[str, Any]:
        """The error object a client receives."""
        body: dict[str, Any] = {
            "type": "client_error" if self.failure.status < 500 else "worker_error",
            "code": self.failure.code,
            "status": self.failure.status,
            "message": self.message,
            "retryable": self.failure.retryable,
            "hint": self.failure.hint,
            "job_id": job_id,
        }
        if self.field is not None:
            body["field"] = self.field
        if self.details:
            body["details"] = self.details
        return body

    def as_json(self, job_id: str) -> str:
        """The error object as the JSON string that RunPod shows in `error`."""
        return orjson.dumps(self.as_dict(job_id), default=str).decode()


class StartError(Exception):
    """The worker cannot start. One line says why, one what to change; the process then exits with status 1."""

    def __init__(self, cause: str, cure: str, *, setting: str | None = None) -> None:
        super().__init__(f"{cause} {cure}")
        self.cause = cause
        self.cure = cure
        self.setting = setting
