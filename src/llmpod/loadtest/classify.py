"""What became of a job: success is read from its status and its output, never from an HTTP 200."""

import json
from typing import Any

TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})

# class -> what it means, in the words of the report. The order is the order of the report.
ERROR_CLASSES: dict[str, str] = {
    "submit_401": "refused: the API key is missing, wrong, or not allowed here",
    "submit_404": "no such endpoint (or route)",
    "submit_429": "refused: too many requests",
    "submit_4xx": "refused as a bad request",
    "submit_5xx": "the service failed to take the job",
    "dns": "the host name does not resolve",
    "connect": "no connection (refused, reset or unreachable)",
    "tls": "the TLS handshake failed",
    "bad_reply": "the reply is not what RunPod's API answers (HTML, or not a status object)",
    "client_timeout": "no result within --timeout; the job was cancelled",
    "wait_expired": "/runsync's wait ended first, and no result followed",
    "job_failed": "the job ended FAILED",
    "job_timed_out": "the job ended TIMED_OUT",
    "job_cancelled": "the job was cancelled by somebody else",
    "output_error": "COMPLETED, but the output says error",
    "empty_output": "COMPLETED without any output",
    "result_expired": "404 for an accepted job: the result is no longer kept",
    "stream_broken": "the stream ended before its end",
    "poll_failed": "the job was accepted, but its status could not be read",
    "client_cancelled": "cancelled by this load test when it stopped",
    "internal": "a defect of this load test",
}

# These did not happen to the endpoint: they are reported, and are no failures of it.
NOT_THE_ENDPOINTS_FAULT = frozenset({"client_cancelled"})

WARNINGS: dict[str, str] = {
    "wait_expired": "/runsync answered HTTP 200 before the job was done; it was followed to its end",
    "not_streamed": "the worker answered in one piece: /stream had no chunks, so there is no first token",
    "truncated": "stopped at max tokens (finish_reason=length)",
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


def terminal_class(status: str, output: Any, error: Any) -> tuple[str | None, str | None]:
    """(error class, detail) of a job that reached a terminal state; (None, None) is success."""
    if status == "FAILED":
        return "job_failed", error_text(error) or "no error text"
    if status == "TIMED_OUT":
        return "job_timed_out", error_text(error) or "TIMED_OUT"
    if status == "CANCELLED":
        return "job_cancelled", error_text(error) or "CANCELLED"
    if status != "COMPLETED":
        return "bad_reply", f"status '{status}' is no final state"
    inner = output_error(output)
    if inner is not None:
        return "output_error", inner
    if error:
        return "output_error", error_text(error)
    if is_empty(output):
        return "empty_output", "COMPLETED without output"
    return None, None


def output_error(output: Any) -> str | None:
    """The text of an error that hides in a COMPLETED job's output: a dict's `error`, or that of one of a list's
    items."""
    items = output if isinstance(output, list) else [output]
    for item in items:
        if isinstance(item, dict) and item.get("error"):
            return error_text(item["error"]) or "error"
    return None


def is_empty(output: Any) -> bool:
    """True when an output holds nothing that a caller could use. `0` and `false` are values; "" and {} are not."""
    if output is None:
        return True
    if isinstance(output, str):
        return output.strip() == ""
    if isinstance(output, list):
        return all(is_empty(item) for item in output)
    if isinstance(output, dict):
        if not output:
            return True
        return bool(output.get("choices") == [])
    return False


def error_text(error: Any) -> str | None:
    """One line, at most 300 characters, of whatever stands in an `error` field.

    RunPod sends a string that is often JSON (`error_type`, `error_message`, a long traceback); the type and the message
    are what a report groups by.
    """
    if error is None or error == "":
        return None
    value: Any = error
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = error
    if isinstance(value, dict):
        kind = value.get("error_type") or value.get("type") or value.get("code")
        message = value.get("error_message") or value.get("message") or value.get("detail")
        parts = [str(part) for part in (kind, message) if part]
        value = ": ".join(parts) if parts else json.dumps(value)
    return " ".join(str(value).split())[:300]
