"""Error codes of jobs, and the exceptions JobError, RouteError and StartError.

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
    """A row of the error table: code, HTTP status, whether a retry can help, and advice to the caller."""

    code: str
    status: int
    retryable: bool
    hint: str


class Code(enum.Enum):
    """Error codes that a client can receive. `code` is stable, messages are not."""

    INVALID_INPUT = Failure("invalid_input", 400, False, "Correct the named field and send the job again.")
    UNKNOWN_FIELD = Failure("unknown_field", 400, False, "Remove the named field or correct its spelling.")
    PROMPT_TOO_LONG = Failure(
        "prompt_too_long",
        400,
        False,
        "Shorten the text. Its limit is the operator's: MAX_PROMPT_CHARS, MAX_INPUT_CHARS.",
    )
    CONTEXT_LENGTH_EXCEEDED = Failure(
        "context_length_exceeded",
        400,
        False,
        "Shorten the prompt or lower max_tokens. The limit is the operator's: MAX_MODEL_LEN.",
    )
    INCOMPLETE_OUTPUT = Failure(
        "incomplete_output", 400, False, "Raise max_tokens (and MAX_TOKENS_MAX), or send allow_partial."
    )
    INVALID_OUTPUT = Failure(
        "invalid_output",
        500,
        False,
        "Read details.issues. The task's operator decides whether such answers fail: on_invalid.",
    )
    UNSUPPORTED = Failure("unsupported", 400, False, "This worker does not do that; see the message.")
    NOT_FOUND = Failure("not_found", 404, False, "Use one of the names in the message.")
    ROUTE_CLOSED = Failure("route_closed", 403, False, "Only the worker's operator can open a route: ALLOWED_ROUTES.")
    METHOD_NOT_ALLOWED = Failure("method_not_allowed", 405, False, "Use one of the methods in the `Allow` header.")
    BODY_TIMEOUT = Failure("body_timeout", 408, True, "Send the request's body faster.")
    BODY_TOO_LARGE = Failure(
        "body_too_large", 413, False, "Send a smaller body. Its limit is the operator's: MAX_BODY_BYTES."
    )
    UNSUPPORTED_MEDIA_TYPE = Failure(
        "unsupported_media_type", 415, False, "Send JSON, not compressed, with `Content-Type: application/json`."
    )
    BLOCKED = Failure("content_filter", 400, False, "This worker does not answer such requests.")
    CANCELLED = Failure("cancelled", 409, True, "Send the job again if it was not meant to be stopped.")
    OVERLOADED = Failure("overloaded", 503, True, "Send the job again after details.retry_after_s seconds, or later.")
    TIMEOUT = Failure("timeout", 504, True, "Ask for fewer tokens, or give the job more time: policy.executionTimeout.")
    RESULT_TOO_LARGE = Failure(
        "result_too_large",
        413,
        False,
        "Ask for less in one job, or stream it from a worker whose operator set RETURN_AGGREGATE_STREAM=false.",
    )
    WORKER_STOPPING = Failure("worker_stopping", 503, True, "Send the job again; another worker takes it.")
    GENERATION_FAILED = Failure("generation_failed", 500, True, "Send the job again; the worker's log has the cause.")
    ENGINE_DEAD = Failure("engine_dead", 503, True, "Send the job again; RunPod replaces this worker.")
    ENGINE_STALLED = Failure("engine_stalled", 503, True, "Send the job again; RunPod replaces this worker.")
    INTERNAL_ERROR = Failure("internal_error", 500, True, "Send the job again; the worker's log has the cause.")


class JobError(Exception):
    """Failure of a job.

    `field` is the path of the offending input (``sampling_params.max_tokens``); `details` are numbers and names worth
    having in the reply. Neither may hold a prompt, an answer or a secret.
    """

    last_reply: dict[str, Any] | None = None
    """The chunk that a stream sends before the failure."""

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


class RouteError(JobError):
    """Failure of a route job, with the error object that the route's client library reads in `error`.

    `status` and `error` are vLLM's own where vLLM answered.
    """

    def __init__(
        self,
        cause: JobError,
        *,
        status: int | None = None,
        error: dict[str, Any] | None = None,
        anthropic: bool = False,
    ) -> None:
        super().__init__(cause.code, cause.message, field=cause.field, **cause.details)
        self.status = status or self.failure.status
        self.quotes_client = error is not None  # vLLM's messages may hold what the client sent
        self.anthropic = anthropic
        self.error = error or {
            "message": self.message,
            "type": _HTTP_TYPES.get(self.status, "BadRequestError" if self.status < 500 else "InternalServerError"),
            "param": self.field,
            "code": self.failure.code if self.code is Code.BLOCKED else self.status,
        }

    def as_dict(self, job_id: str) -> dict[str, Any]:
        """The error object, with `error` in it."""
        retryable = self.status in (408, 409, 429) or (self.status >= 500 and self.failure.retryable)
        return super().as_dict(job_id) | {"status": self.status, "retryable": retryable, "error": self.error}

    def as_event(self, job_id: str) -> str:
        """The last event of a stream that failed, as the route's client library expects it."""
        if self.anthropic:
            body = orjson.dumps({"type": "error", "error": self.error}, default=str).decode()
            return f"event: error\ndata: {body}\n\n"
        return f"data: {orjson.dumps({'error': self.error}, default=str).decode()}\n\n"


# vLLM's names for HTTP's statuses (vllm/entrypoints/serve/exception_handling/error_response.py), and OpenAI's own.
_HTTP_TYPES = {
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}


class StartError(Exception):
    """The worker cannot start. `cause` is one line, `cure` another; the process exits with status 1."""

    def __init__(self, cause: str, cure: str, *, setting: str | None = None) -> None:
        super().__init__(f"{cause} {cure}")
        self.cause = cause
        self.cure = cure
        self.setting = setting
