"""Error classes and warnings of jobs, each with its meaning."""

import json
from typing import Any, Literal

from llmpod.loadtest.intake import UnreadableError, code, line, read_json

# answered: a usable answer; blocked: the worker's policy refused it; invalid: answered, but not as the worker's own
# validation wants it; cut: answered until max_tokens; failed: no answer.
Outcome = Literal["answered", "blocked", "invalid", "cut", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "cut", "invalid", "blocked", "failed")

TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})

# class -> what it means, in the words of the report. The order is the order of the report.
ERROR_CLASSES: dict[str, str] = {
    "submit_401": "refused: the API key is missing, wrong, or not allowed here",
    "submit_404": "no such endpoint (or route)",
    "submit_429": "refused: too many requests",
    "submit_4xx": "refused as a bad request",
    "submit_5xx": "the service failed to take the job",
    "no_worker": "the load balancer had no worker for it in time",
    "dns": "the host name does not resolve",
    "connect": "no connection (refused, reset or unreachable)",
    "tls": "the TLS handshake failed",
    "bad_reply": "the reply is not what RunPod's API answers (HTML, or not a status object)",
    "client_timeout": "no result within --timeout; the job was cancelled if it had an id",
    "wait_expired": "/runsync's wait ended first, and no result followed (records of older versions)",
    "job_failed": "the job ended FAILED",
    "job_timed_out": "the job ended TIMED_OUT",
    "job_cancelled": "the job was cancelled by somebody else",
    "output_error": "COMPLETED, but the output says error",
    "blocked": "the worker's policy does not answer this (--expect-blocked counts it as a success)",
    "empty_output": "COMPLETED without any output",
    "result_expired": "404 for an accepted job: the result is no longer kept",
    "stream_broken": "the stream ended before its end",
    "poll_failed": "the job was accepted, but its status could not be read",
    "client_cancelled": "cancelled by this load test when it stopped",
    "internal": "an internal error of the load tester",
}

# These did not happen to the endpoint: they are reported, and are no failures of it.
NOT_THE_ENDPOINTS_FAULT = frozenset({"client_cancelled"})

WARNINGS: dict[str, str] = {
    "wait_expired": "/runsync answered HTTP 200 before the job was done; from then on its status was asked for",
    "left_running": "given up before the service had named the job's id: it was not cancelled, and may run on",
    "not_streamed": "the worker answered in one piece: /stream had no chunks, so there is no first token",
    "truncated": "stopped at max tokens (finish_reason=length)",
    "clamped": "the worker lowered max_tokens to its own limit",
    "no_text": "tokens were counted, but the answer has no text",
    "timing_inconsistent": "delayTime + executionTime does not fit what the client saw",
    "retried": "the platform ran the job more than once",
}


def submit_class(status: int) -> str:
    """The error class of an HTTP status that answered a submit."""
    if status in (401, 403):
        return "submit_401"
    if status in (404, 429):
        return f"submit_{status}"
    return "submit_5xx" if status >= 500 else "submit_4xx"


def error_text(error: Any) -> str | None:
    """One line, at most 300 characters, of whatever stands in an `error` field.

    RunPod sends a string that is often JSON (`error_type`, `error_message`, a long traceback); the type and the message
    are what a report shows.
    """
    value = _decoded(error)
    if value is None or value == "":
        return None
    if isinstance(value, dict):
        kind = value.get("error_type") or code(value.get("code")) or value.get("type") or value.get("code")
        message = value.get("error_message") or value.get("message") or value.get("detail")
        parts = [line(part, 300) for part in (kind, message) if part]
        value = ": ".join(parts) if parts else json.dumps(value)
    return line(value)


def error_code(error: Any) -> str | None:
    """The stable name of an error, by which failures are grouped: `code` if it is a name, else the error's type.

    llmpod's errors have a code (docs/errors.md), OpenAI's have a type beside a number, RunPod's SDK sends the class of
    an exception as `<class 'ValueError'>`.
    """
    value = _decoded(error)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("error"), dict | str) and "code" not in value:
        value = _decoded(value["error"])
        if not isinstance(value, dict):
            return None
    kind = value.get("error_type")
    named = kind.removeprefix("<class '").removesuffix("'>") if isinstance(kind, str) else None
    return code(value.get("code")) or code(named) or code(value.get("type"))


def _decoded(error: Any) -> Any:
    if not isinstance(error, str):
        return error
    try:
        value = read_json(error)
    except UnreadableError:
        return error
    return value if isinstance(value, dict) else error
