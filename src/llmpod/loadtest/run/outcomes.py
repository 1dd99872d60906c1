"""Outcome of a job, read from its status and its output, not from the HTTP status."""

from dataclasses import dataclass
from typing import Any

from llmpod.loadtest.intake import line
from llmpod.loadtest.model.failures import Outcome, error_code, error_text
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.run.answer import CUT, Answer

CHARS_PER_TOKEN = 4
_ENDED_WITHOUT_RESULT = {"FAILED": "job_failed", "TIMED_OUT": "job_timed_out", "CANCELLED": "job_cancelled"}
# The code of llmpod's errors, and the finish reason of OpenAI's API, for what a policy does not let through.
_BLOCKED = frozenset({"blocked", "content_filter"})
# vLLM's finish reasons of requests that it gave up.
_GIVEN_UP = frozenset({"abort", "error"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error_class` is None for a success. `code` is the worker's own name for what went wrong."""

    outcome: Outcome
    error_class: str | None = None
    error: str | None = None
    code: str | None = None


def judge(answer: Answer, status: str = "COMPLETED", error: Any = None) -> Verdict:
    """The verdict on a job that reached a final state with this output and this `error` field."""
    if status in _ENDED_WITHOUT_RESULT:
        return failed(_ENDED_WITHOUT_RESULT[status], error, missing="no error text" if status == "FAILED" else status)
    if status != "COMPLETED":
        return Verdict("failed", "bad_reply", f"status '{line(status, 60)}' is no final state")
    wrong = error if answer.error is None else answer.error
    if wrong:
        return failed("output_error", wrong)
    if answer.finish_reason in _GIVEN_UP:
        return failed("output_error", f"finish_reason {answer.finish_reason}")
    if answer.blocked or answer.finish_reason in _BLOCKED:
        return Verdict("blocked", "blocked", f"intent {answer.intent}" if answer.intent else "blocked", "blocked")
    if not answer.content and not answer.output_tokens:
        return Verdict("failed", "empty_output", "COMPLETED without output")
    if answer.valid is False:
        return Verdict("invalid")
    return Verdict("cut" if answer.finish_reason in CUT else "answered")


def failed(error_class: str, error: Any, missing: str = "error") -> Verdict:
    """The verdict on an error as a service tells it. A policy's refusal is `blocked` in every form."""
    name, text = error_code(error), error_text(error) or missing
    if name in _BLOCKED:
        return Verdict("blocked", "blocked", text, name)
    return Verdict("failed", error_class, text, name)


def note(job: Job, answer: Answer, verdict: Verdict, *, expect_blocked: bool = False) -> None:
    """Puts an answer and its verdict on the job. Tokens that were not counted are estimated and marked."""
    job.prompt_tokens, job.output_tokens = answer.prompt_tokens, answer.output_tokens
    if job.output_tokens is None and answer.chars:
        job.output_tokens = max(1, round(answer.chars / CHARS_PER_TOKEN))
        job.tokens_estimated = True
    job.finish_reason, job.valid, job.intent = answer.finish_reason, answer.valid, answer.intent
    if answer.finish_reason in CUT:
        job.warn("truncated")
    if answer.clamped:
        job.warn("clamped")
    settle(job, verdict, expect_blocked=expect_blocked)
    if job.ok and not answer.content and verdict.outcome != "blocked":
        job.warn("no_text")


def settle(job: Job, verdict: Verdict, *, expect_blocked: bool = False) -> None:
    job.outcome, job.code = verdict.outcome, verdict.code
    job.error_class, job.error = verdict.error_class, verdict.error
    if verdict.outcome == "blocked" and expect_blocked:
        job.error_class = job.error = None
    job.ok = job.error_class is None
