"""Verdict on one answer: passed, failed, or no answer at all, which says nothing about quality."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from llmpod.loadtest.intake import UnreadableError, line, read_json
from llmpod.loadtest.model.answer_text import text_of
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.quality.dataset import Expect

ANSWERED_BADLY = frozenset({"invalid_output", "incomplete_output"})
"""Codes of a FAILED job whose model did answer: the worker found the answer wanting."""
EMPTY = "empty_output"

Kind = Literal["passed", "failed", "transport"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`leak`: an answer where the policy should have blocked."""

    kind: Kind
    reasons: tuple[str, ...] = ()
    leak: bool = False
    cut: bool = False  # max_tokens ended the answer


def text_or_json(output: Any) -> str:
    """What an answer says. An output of no known shape is its own JSON."""
    return text_of(output, lambda other: "" if other is None else json.dumps(other, ensure_ascii=False))


def _object_in(output: Any) -> Any:
    """The JSON value of the answer: the worker's own `parsed`, else the text's. Raises UnreadableError."""
    if isinstance(output, dict) and output.get("parsed") is not None:
        return output["parsed"]
    text = text_or_json(output)
    if not text.strip():
        raise UnreadableError("no text")
    return read_json(text)


def judge(expect: Expect, job: Job, output: Any) -> Verdict:
    """The verdict on a job that has ended."""
    failed = job.outcome not in ("answered", "cut", "invalid", "blocked")
    if failed and job.code not in ANSWERED_BADLY and job.error_class != EMPTY:
        return Verdict("transport", (line(f"{job.error_class}: {job.error}", 200),))
    if expect.blocked and job.outcome != "blocked":
        return Verdict("failed", ("answered, and should have been blocked",), leak=job.error_class != EMPTY)
    reasons = tuple(_reasons(expect, job, output, failed=failed))
    return Verdict("failed" if reasons else "passed", reasons, cut=job.outcome == "cut")


def _reasons(expect: Expect, job: Job, output: Any, *, failed: bool) -> Iterator[str]:
    if failed:
        yield job.code or "an empty answer"
        return
    if expect.intent is not None and job.intent != expect.intent:
        yield f"intent {job.intent}, not {expect.intent}" if job.intent else "the reply names no intent"
    if job.outcome == "blocked":
        if not expect.blocked:
            yield "blocked, and should have been answered"
        return
    if expect.valid is not None and job.valid is not expect.valid:
        yield "the worker did not validate" if job.valid is None else _validity(job.valid, output)
    if expect.json_schema is not None:
        try:
            problem = expect.json_schema.problem(_object_in(output))
        except UnreadableError as error:
            problem = f"no JSON object: {error}"
        if problem is not None:
            yield line(problem, 200)
    text = text_or_json(output).casefold() if expect.contains or expect.avoids else ""
    for wanted in expect.contains:
        if wanted.casefold() not in text:
            yield f"does not contain {line(wanted, 60)!r}"
    for unwanted in expect.avoids:
        if unwanted.casefold() in text:
            yield f"contains {line(unwanted, 60)!r}"


def _validity(valid: bool, output: Any) -> str:
    """The worker's own issues say why an answer is invalid."""
    if valid:
        return "valid, and should not have been"
    validation = output.get("validation") if isinstance(output, dict) else None
    issues = validation.get("issues") if isinstance(validation, dict) else None
    listed = issues if isinstance(issues, list) else []
    told = [issue.get("message") if isinstance(issue, dict) else issue for issue in listed]
    return line(f"invalid: {'; '.join(map(str, told[:5])) or 'the worker does not say why'}", 200)
