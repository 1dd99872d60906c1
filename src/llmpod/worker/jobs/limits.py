"""Guardrails: limits on prompts, answers and constraints of a job. Pure functions, called before the engine.

A check raises JobError, with what was given and the limit: invalid_input, where it names no other code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.settings import Settings

CONSTRAINTS = ("structured_outputs", "response_format", "text", "output_config", "output_format")
"""The fields of a request that hold a structured output."""

MAX_WORDS = 1000
MAX_WORD_CHARS = 10_000
"""Stop strings, and bad words, of one job."""
MAX_SCORED = 1024
"""Engine requests of one job at once, where they are inputs: texts, pairs, parts of a recording. vLLM's work on them in
the event loop grows with their square: a tenth of a second for these."""
MAX_TOKENIZED_BYTES = 250_000
"""Bytes of text that a route which only tokenizes accepts: its answer is a list of ids, written in the event loop."""


@dataclass(frozen=True)
class MaxTokens:
    """max_tokens of an answer: what the client requested and what the engine gets."""

    requested: int | None
    effective: int
    reason: str | None = None  # why the two differ: default, profile, raised, lowered or context

    def as_dict(self) -> dict[str, int | str | None]:
        """The fields for the reply's `limits` and the log."""
        return {"requested": self.requested, "effective": self.effective, "reason": self.reason}

    def fitting(self, tokens: int | None) -> MaxTokens:
        """Lowered to `tokens`, where the model's context leaves no more. None: not known."""
        if tokens is None or tokens >= self.effective:
            return self
        return replace(self, effective=tokens, reason="context")


@dataclass(frozen=True)
class Context:
    """What a model can read: tokens, of which none has more characters than the longest. 0: not known."""

    tokens: int = 0
    longest_token: int = 0

    @property
    def chars(self) -> int:
        """Most characters of a prompt; vLLM has the same bound (vllm/renderers/params.py)."""
        return self.tokens * self.longest_token

    def check(self, chars: int, *, field: str, prompts: int = 1) -> None:
        """Check that `prompts` prompts, of `chars` characters together, can fit: context_length_exceeded.

        This comes before the policy, which takes milliseconds for a thousand characters.
        """
        if 0 < prompts * self.chars < chars:
            raise JobError(
                Code.CONTEXT_LENGTH_EXCEEDED,
                f"The prompt has {chars} characters, which are more than {self.tokens} tokens.",
                field=field,
                chars=chars,
                max_model_len=self.tokens,
            )


def check(request: NativeRequest, settings: Settings, context: Context) -> None:
    """Check the limits of a native job that can be read from its input: prompt, answers and constraints."""
    check_chars(request.chars, settings, field=request.prompt_field)
    context.check(request.chars, field=request.prompt_field)
    if isinstance(n := request.sampling.get("n"), int):
        check_answers(n, settings, field="sampling_params.n")
    check_words(request.sampling, within="sampling_params.")
    check_constraint(request.sampling, settings, within="sampling_params.")


def check_chars(chars: int, settings: Settings, *, field: str) -> None:
    """Check MAX_PROMPT_CHARS for `chars` characters in `field`: prompt_too_long."""
    limit = settings.max_prompt_chars
    if limit and chars > limit:
        raise JobError(
            Code.PROMPT_TOO_LONG,
            f"The prompt has {chars} characters; this worker accepts {limit}.",
            field=field,
            chars=chars,
            limit=limit,
        )


def check_constraint(given: Mapping[str, Any], settings: Settings, *, within: str = "") -> None:
    """Check MAX_CONSTRAINT_CHARS for a structured output; `within` is the path of the fields in `given`.

    The time to compile it is limited in constraints.py. The schemas of tools count as part of the prompt.
    """
    for field in CONSTRAINTS:
        if not isinstance(given.get(field), dict | None):
            raise JobError(Code.INVALID_INPUT, f"{within}{field} must be an object.", field=within + field)
    limit = settings.max_constraint_chars
    for field in CONSTRAINTS if limit else ():
        chars = len(orjson.dumps(given[field])) if given.get(field) is not None else 0
        _check_count(chars, limit, "characters", field=within + field)


def constrained(given: Mapping[str, Any]) -> bool:
    """Whether the answer has a structured output, of which a part is useless. Tools are handled in tool_choice.py."""
    return any(_binds(given.get(name)) for name in CONSTRAINTS)


def _binds(constraint: object) -> bool:
    """Whether a field's value constrains the answer; the same fields can request free text."""
    if not isinstance(constraint, dict):
        return False
    form = constraint.get("format", constraint)
    named = isinstance(form, dict) and form.get("type") not in (None, "text")
    return named or any(constraint.get(name) not in (None, False) for name in _BINDING)


_BINDING = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


def check_whole(
    request: NativeRequest,
    finish_reasons: Mapping[int, str],
    max_tokens: MaxTokens,
    reply: dict[str, Any],
    *,
    tokens: int,
) -> None:
    """Fail an answer with a structured output that max_tokens cut, unless the client allowed that: incomplete_output.

    `tokens`: of all answers.
    """
    if request.allow_partial or not constrained(request.sampling) or "length" not in finish_reasons.values():
        return
    error = JobError(
        Code.INCOMPLETE_OUTPUT,
        f"max_tokens ({max_tokens.effective}) ended the answer before structured_outputs was satisfied.",
        field="sampling_params.max_tokens",
        max_tokens=max_tokens.effective,
        tokens=tokens,
    )
    error.last_reply = reply
    raise error


def check_words(given: Mapping[str, Any], *, within: str = "") -> None:
    """Check MAX_WORDS and MAX_WORD_CHARS for stop strings and bad words.

    The event loop and the engine compare each of them with each token, and bad words are tokenised first.
    """
    for field in ("stop", "stop_sequences", "bad_words"):
        value = given.get(field)
        words = value if isinstance(value, list) else [value]
        chars = sum(len(word) for word in words if isinstance(word, str))
        for count, most, what in ((len(words), MAX_WORDS, "texts"), (chars, MAX_WORD_CHARS, "characters")):
            _check_count(count, most, what, field=within + field)


def _check_count(count: int, limit: int, what: str, *, field: str) -> None:
    if count > limit:
        raise JobError(
            Code.INVALID_INPUT,
            f"{field} has {count} {what}; this worker accepts {limit}.",
            field=field,
            given=count,
            limit=limit,
        )


def check_bytes(texts: Sequence[str], *, field: str) -> None:
    """Check MAX_TOKENIZED_BYTES for texts that are only tokenized, into up to one id per byte: prompt_too_long."""
    count = sum(map(len, texts))
    if count > MAX_TOKENIZED_BYTES // 4:  # no character has more than four
        count = sum(len(text.encode()) for text in texts)
    if count > MAX_TOKENIZED_BYTES:
        raise JobError(
            Code.PROMPT_TOO_LONG,
            f"The text has {count} bytes; this worker tokenizes {MAX_TOKENIZED_BYTES} at a time.",
            field=field,
            bytes=count,
            limit=MAX_TOKENIZED_BYTES,
        )


def check_answers(n: int, settings: Settings, *, field: str) -> None:
    """Check MAX_N for `n` answers requested in `field`: each uses one sequence of the engine's batch."""
    if n > settings.max_n:
        raise JobError(
            Code.INVALID_INPUT, f"n is {n}; this worker gives at most {settings.max_n} answers.", field=field
        )


def check_inputs(chars: Sequence[int], settings: Settings, *, field: str) -> None:
    """Check MAX_INPUTS, and MAX_INPUT_CHARS (prompt_too_long), for inputs of a length each, to embed or score."""
    _check_count(len(chars), settings.max_inputs, "inputs", field=field)
    limit = settings.max_input_chars
    for index, count in enumerate(chars):
        if limit and count > limit:
            raise JobError(
                Code.PROMPT_TOO_LONG,
                f"Input {index} of {field} has {count} characters; this worker accepts {limit} (MAX_INPUT_CHARS).",
                field=field,
                index=index,
                chars=count,
                limit=limit,
            )


def cap_max_tokens(requested: int | None, settings: Settings, *, field: str) -> MaxTokens:
    """Apply MAX_TOKENS_MAX to a route job: max_tokens is lowered or refused (MAX_TOKENS_POLICY), never raised."""
    clamped = clamp_max_tokens(requested, settings)
    if requested is None:
        return clamped
    if clamped.effective >= requested:
        return MaxTokens(requested, requested)
    if settings.max_tokens_policy == "reject":
        raise JobError(
            Code.INVALID_INPUT,
            f"{field} is {requested}; this worker gives at most {clamped.effective} tokens.",
            field=field,
        )
    return clamped


def clamp_max_tokens(
    requested: int | None, settings: Settings, *, usual: int | None = None, cap: int | None = None
) -> MaxTokens:
    """Bring max_tokens into [MAX_TOKENS_MIN, MAX_TOKENS_MAX]; MAX_TOKENS_DEFAULT stands for none.

    `usual` and `cap` are a profile's, in place of MAX_TOKENS_DEFAULT and MAX_TOKENS_MAX.
    """
    wanted = requested or usual or settings.max_tokens_default
    effective = max(wanted, settings.max_tokens_min)
    most = cap or settings.max_tokens_max
    if most:
        effective = min(effective, most)
    if effective == requested:
        return MaxTokens(requested, effective)
    if requested is None:
        reason = "profile" if usual else "default"
    else:
        reason = "raised" if effective > requested else "profile" if cap else "lowered"
    return MaxTokens(requested, effective, reason)


def fit_context(max_tokens: MaxTokens, prompt_tokens: int, max_model_len: int) -> MaxTokens:
    """Check that prompt and answer fit MAX_MODEL_LEN: context_length_exceeded.

    A client's max_tokens that does not fit is an error; one that this worker chose or raised is lowered.
    """
    left = max_model_len - prompt_tokens
    needed = 1 if max_tokens.requested is None else min(max_tokens.requested, max_tokens.effective)
    if left < needed:
        raise JobError(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"The prompt has {prompt_tokens} tokens, the answer needs {needed}; together at most {max_model_len} fit.",
            field="prompt" if left < 1 else "sampling_params.max_tokens",
            prompt_tokens=prompt_tokens,
            max_tokens=needed,
            max_model_len=max_model_len,
        )
    return max_tokens.fitting(left)
