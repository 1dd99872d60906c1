"""Splits merged engine outputs into outputs of one token each.

vLLM's streaming parsers of tool calls and reasoning expect a token per delta, and many of them misread two. But the
engine's client merges what becomes ready while its reader is busy (vllm/v1/engine/output_processor.py), and speculative
decoding makes several tokens in one step. So each answer is detokenised once more beside the engine, a token at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

Value = TypeVar("Value")


class Detokenizer(Protocol):
    """The methods of vLLM's IncrementalDetokenizer that are used here."""

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        """Add generated tokens."""

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        """The text added since the last call."""


def _with(value: Value, **changed: Any) -> Value:
    """A shallow copy with other attributes, at a third of the price of copy.copy and dataclasses.replace."""
    made = object.__new__(type(value))
    vars(made).update(vars(value), **changed)
    return made


class TokenOutputs:
    """Splits the delta outputs of one engine request."""

    def __init__(self, detokenizer: Callable[[Sequence[int]], Detokenizer]) -> None:
        """`detokenizer`: creates one from the request's parameters and the prompt's token ids."""
        self._detokenizer = detokenizer
        self._of_choice: dict[int, Detokenizer] = {}

    def split(self, output: Any) -> Iterator[Any]:
        """Split `output` into one token per choice. The texts always join to the original text."""
        choices = [list(self._tokens(choice, output.prompt_token_ids)) for choice in output.outputs]
        last = max(map(len, choices), default=1) - 1
        for position in range(last + 1):
            one = _with(output) if last else output
            one.outputs = [choice[position] for choice in choices if position < len(choice)]
            one.finished = output.finished and position == last
            yield one

    def _tokens(self, choice: Any, prompt_ids: Sequence[int] | None) -> Iterator[Any]:
        detokenizer = self._of_choice.get(choice.index)
        if detokenizer is None:
            detokenizer = self._of_choice[choice.index] = self._detokenizer(prompt_ids or ())
        text, ids, rows = choice.text, choice.token_ids, choice.logprobs
        for position, token_id in enumerate(ids[:-1]):
            piece = self._next(detokenizer, token_id)
            piece = piece if text.startswith(piece) else text
            text = text[len(piece) :]
            yield _with(
                choice,
                text=piece,
                token_ids=[token_id],
                logprobs=None if rows is None else rows[position : position + 1],
                finish_reason=None,
                stop_reason=None,
            )
        if ids and choice.finish_reason is None:
            self._next(detokenizer, ids[-1])
        if len(ids) > 1:
            choice = _with(
                choice, text=text, token_ids=ids[-1:], logprobs=None if rows is None else rows[len(ids) - 1 :]
            )
        yield choice

    @staticmethod
    def _next(detokenizer: Detokenizer, token_id: int) -> str:
        detokenizer.update([token_id], False)
        return detokenizer.get_next_output_text(False, True)
