"""Answer: what an output says, piece by piece or as a whole; and the shapes of JSON objects that it is read from.

llmpod's native reply and its chunks; OpenAI's chat, completions, responses, embeddings, rerank and transcriptions;
Anthropic's messages; errors as `{"object": "error"}`; and whatever else there is, as of a handler of one's own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from llmpod.loadtest.intake import count, label

# How the APIs say that max_tokens ended an answer: OpenAI, Anthropic, OpenAI's responses.
CUT = frozenset({"length", "max_tokens", "max_output_tokens"})
_FAILED_STATES = frozenset({"error", "failed", "failure"})
# Keys that tell about an answer and are none.
_ABOUT = frozenset(
    {
        "usage", "limits", "model", "request_id", "id", "created", "object", "intent", "validation", "choices",
        "blocked", "index", "finish_reason", "stop_reason", "logprobs", "role",
    }
)  # fmt: skip


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


def read_object(output: dict[str, Any]) -> Answer:
    found = _shape(output)
    error = _error(output)
    limits, validation = output.get("limits"), output.get("validation")
    facts: dict[str, Any] = {}
    if error is not None:
        facts |= {"error": error, "content": False}
    if output.get("blocked") is True:
        facts |= {"blocked": True, "content": False, "known": True}
    if isinstance(validation, dict):
        if isinstance(validation.get("valid"), bool):
            facts["valid"] = validation["valid"]
        facts["intent"] = label(validation.get("intent"))
    if facts.get("intent") is None and ("blocked" in facts or "valid" in facts):
        facts["intent"] = label(output.get("intent"))
    if isinstance(limits, dict) and isinstance(limits.get("max_tokens"), dict):
        asked, got = (count(limits["max_tokens"].get(name)) for name in ("requested", "effective"))
        facts["clamped"] = asked is not None and got is not None and got < asked
    prompt, tokens = _usage(output.get("usage"))
    if prompt is not None:
        facts["prompt_tokens"] = prompt
    if tokens is not None:
        facts["output_tokens"] = tokens
    reason = output.get("finish_reason") or output.get("stop_reason")
    if found.finish_reason is None and reason:
        facts["finish_reason"] = label(reason, 40)
    return replace(found, **facts) if facts else found  # a stream has thousands of these


def _error(output: dict[str, Any]) -> Any:
    """What the object says went wrong, or None. Its own state counts, not that of anything inside of it."""
    for name in ("error", "failure", "err"):
        if output.get(name):
            return output[name]
    state = output.get("status")
    if (
        output.get("object") == "error"
        or output.get("type") == "error"
        or output.get("success") is False
        or (isinstance(state, str) and state.lower() in _FAILED_STATES)
        or (isinstance(output.get("traceback"), str) and "choices" not in output)
    ):
        return {name: value for name, value in output.items() if name not in ("object", "status")} or "error"
    return None


def _shape(output: dict[str, Any]) -> Answer:
    kind = output.get("type")
    if isinstance(output.get("choices"), list):
        choices = [choice for choice in output["choices"] if isinstance(choice, dict)]
        return replace(all_of(_choice(choice) for choice in choices), known=True)
    if isinstance(kind, str) and kind.startswith("response."):
        return _response_event(kind, output)
    if output.get("object") == "response" and isinstance(output.get("output"), list):
        return _response(output)
    if isinstance(kind, str) and kind in _ANTHROPIC_EVENTS:
        return _message_event(kind, output)
    if kind == "message" and isinstance(output.get("content"), list):
        return replace(all_of(map(_block, output["content"])), known=True)
    # Embeddings, scores and classes have `data`, rerank `results`.
    known = any(isinstance(output.get(name), list) for name in ("data", "results"))
    text = next((name for name in ("text", "generated_text") if isinstance(output.get(name), str)), None)
    found = said(output[text]) if text else Answer()
    others = output.keys() - _ABOUT - {text}
    return replace(found, known=known or text is not None, content=found.content or bool(others))


def _choice(choice: dict[str, Any]) -> Answer:
    reason = label(choice.get("finish_reason"), 40)
    for place in (choice.get("delta"), choice.get("message"), choice):
        if not isinstance(place, dict):
            continue
        for name in ("content", "text", "reasoning_content", "reasoning", "refusal"):
            value = place.get(name)
            if isinstance(value, list):
                texts = (part.get("text") or part.get("refusal") for part in value if isinstance(part, dict))
                value = "".join(text for text in texts if isinstance(text, str))
            found = said(value)
            if found.chars:
                return replace(found, finish_reason=reason)
        if any(place.get(name) for name in ("tool_calls", "function_call", "audio")):
            return Answer(content=True, finish_reason=reason)
    tokens = choice.get("tokens")
    text = "".join(str(token) for token in tokens) if isinstance(tokens, list) else ""
    return replace(said(text), finish_reason=reason)


def _response(output: dict[str, Any]) -> Answer:
    """A response of OpenAI's /v1/responses."""
    details = output.get("incomplete_details")
    reason = label(details.get("reason"), 40) if isinstance(details, dict) else None
    parts = []
    for item in output["output"]:
        if not isinstance(item, dict):
            continue
        inner = item.get("content") or item.get("summary")
        texts = [part for part in inner if isinstance(part, dict)] if isinstance(inner, list) else []
        parts += [said(part.get("text") or part.get("refusal")) for part in texts]
        if str(item.get("type")).endswith("_call"):
            parts.append(Answer(content=True))
    prompt, tokens = _usage(output.get("usage"))
    return replace(
        all_of(parts), known=True, ended=True, prompt_tokens=prompt, output_tokens=tokens,
        finish_reason=reason or label(output.get("status"), 40),
    )  # fmt: skip


def _response_event(kind: str, event: dict[str, Any]) -> Answer:
    whole = event.get("response")
    if kind in ("response.completed", "response.incomplete", "response.failed") and isinstance(whole, dict):
        # Its text came before, piece by piece.
        inner = read_object({"object": "response", "output": [], **whole})
        return replace(inner, chars=0, content=False, ended=True)
    return replace(said(event.get("delta")) if kind.endswith(".delta") else Answer(), known=True)


_ANTHROPIC_EVENTS = frozenset(
    {
        "message_start", "message_delta", "message_stop", "content_block_start", "content_block_delta",
        "content_block_stop", "ping",
    }
)  # fmt: skip


def _message_event(kind: str, event: dict[str, Any]) -> Answer:
    found = Answer(known=True, ended=kind == "message_stop")
    delta, started = event.get("delta"), event.get("message")
    if kind == "message_start" and isinstance(started, dict):
        return replace(found, prompt_tokens=_usage(started.get("usage"))[0])
    if kind == "content_block_start" and isinstance(event.get("content_block"), dict):
        return replace(found, content=event["content_block"].get("type") == "tool_use")
    if not isinstance(delta, dict):
        return found
    if kind == "message_delta":
        return replace(found, finish_reason=label(delta.get("stop_reason"), 40))
    return replace(said(delta.get("text") or delta.get("thinking") or delta.get("partial_json")), known=True)


def _block(block: Any) -> Answer:
    """A content block of Anthropic's messages."""
    if not isinstance(block, dict):
        return Answer()
    return Answer(content=True) if block.get("type") == "tool_use" else said(block.get("text") or block.get("thinking"))


def _usage(usage: Any) -> tuple[int | None, int | None]:
    if not isinstance(usage, dict):
        return None, None
    prompt = next((usage[name] for name in ("prompt_tokens", "input_tokens", "input") if name in usage), None)
    tokens = next((usage[name] for name in ("completion_tokens", "output_tokens", "output") if name in usage), None)
    return count(prompt), count(tokens)
