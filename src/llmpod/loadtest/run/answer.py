"""Answer: what an output says, piece by piece or as a whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

# How the APIs say that max_tokens ended an answer: OpenAI, Anthropic, OpenAI's responses.
CUT = frozenset({"length", "max_tokens", "max_output_tokens"})


@dataclass(frozen=True, slots=True)
class Answer:
    """`content`: there is something a caller can use: text, a tool call, a refusal, an embedding, a value. `known`:
    it has the shape of one of the APIs. `ended`: it says itself that it is complete. `error`: what it says went wrong,
    as it stands there."""

    chars: int = 0
    content: bool = False
    known: bool = False
    ended: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: Any = None
    blocked: bool = False
    valid: bool | None = None
    intent: str | None = None
    clamped: bool = False


def joined(first: Answer, then: Answer) -> Answer:
    """Two pieces of one answer. What is told more than once holds as it was told last; the first error stays."""
    return Answer(
        chars=first.chars + then.chars,
        content=first.content or then.content,
        known=first.known or then.known,
        ended=first.ended or then.ended,
        prompt_tokens=first.prompt_tokens if then.prompt_tokens is None else then.prompt_tokens,
        output_tokens=first.output_tokens if then.output_tokens is None else then.output_tokens,
        finish_reason=then.finish_reason or first.finish_reason,
        error=then.error if first.error is None else first.error,
        blocked=first.blocked or then.blocked,
        valid=first.valid if then.valid is None else then.valid,
        intent=then.intent or first.intent,
        clamped=first.clamped or then.clamped,
    )


def all_of(pieces: Iterable[Answer]) -> Answer:
    return reduce(joined, pieces) if (pieces := list(pieces)) else Answer()


def said(text: Any) -> Answer:
    """A piece of text. A blank may be a token of a longer answer; alone it is nothing that a caller can use."""
    return Answer(chars=len(text), content=bool(text.strip())) if isinstance(text, str) else Answer()
