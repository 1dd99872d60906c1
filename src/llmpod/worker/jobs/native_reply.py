"""Native replies: the whole reply and the chunks of a stream.

Whole: {"choices": [{index, text, finish_reason, …}], "usage", "limits", "model", "request_id", "text", "validation"?}.
`text` is the first choice's, where clients of other workers look for it.
Streamed: {"choices": [{index, text}]} per chunk, `text` being only what is new; the last chunk has the rest.
Joining a choice's texts gives the whole text, always.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmpod.worker.errors import JobError
from llmpod.worker.jobs.engine_output import Delta, Usage
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.jobs.limits import MaxTokens

Reply = dict[str, Any]


class Answer:
    """Text so far, per choice."""

    def __init__(self, prefill: str | None = None) -> None:
        """`prefill`: the beginning of each answer, which the engine did not generate."""
        self._prefill = prefill or ""
        self.texts: dict[int, str] = {}
        self.finish_reasons: dict[int, str] = {}

    def add(self, deltas: Iterable[Delta]) -> Reply:
        """Add new text and return it as a reply's `choices`."""
        choices = []
        for delta in deltas:
            text = delta.text if delta.index in self.texts else self._prefill + delta.text
            self.texts[delta.index] = self.texts.get(delta.index, "") + text
            choice: Reply = {"index": delta.index, "text": text}
            if delta.logprobs is not None:
                choice["logprobs"] = delta.logprobs
            if delta.finish_reason is not None:
                self.finish_reasons[delta.index] = choice["finish_reason"] = delta.finish_reason
                if delta.stop_reason is not None:
                    choice["stop_reason"] = delta.stop_reason
            choices.append(choice)
        return {"choices": choices}

    def returned(self, reply: Reply) -> Reply:
        """A whole reply with the texts as they are now."""
        return reply | {"choices": [choice | {"text": self.texts[choice["index"]]} for choice in reply["choices"]]}


def says_something(reply: Reply) -> bool:
    """Whether a chunk has content: half a character or a possible stop string is held back as empty text."""
    return any(choice["text"] or "finish_reason" in choice or "logprobs" in choice for choice in reply["choices"])


def ending(
    request: NativeRequest, answer: Answer, usage: Usage, max_tokens: MaxTokens, model: str, request_id: str
) -> Reply:
    """Fields that a whole reply and a stream's last chunk have beside the choices."""
    reply: Reply = {
        "usage": {
            "input": usage.prompt_tokens,
            "output": usage.completion_tokens,
            "total": usage.prompt_tokens + usage.completion_tokens,
        },
        "limits": {"max_tokens": max_tokens.as_dict(), **request.adapted},
        "model": model,
        "request_id": request_id,
    }
    if usage.cached_tokens:
        reply["usage"]["cached"] = usage.cached_tokens
    if not request.stream:
        reply["text"] = answer.texts.get(0, "")
    return reply


def blocked(error: JobError, *, model: str, request_id: str) -> Reply:
    """The reply to a job that the profile's policy blocks. The job is COMPLETED: nothing failed."""
    found = {"blocked": True, "intent": error.details["intent"], "message": error.message}
    return found | {"model": model, "request_id": request_id}


def stream_error(error: Reply) -> Reply:
    """The last chunk of a stream whose job fails; chunks before it stay valid.

    The key is not `error`, which would end the stream before this chunk is sent (runpod 1.12.0, rp_job.py).
    """
    return {"choices": [], "failure": error}
