"""Frame: what a chat template writes around the messages, measured by conversations of known texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass

from llmpod.worker.jobs.inputs import Message

FRAMED_MESSAGES = 15
"""Number of messages whose text from the chat template does not count as the client's."""
MEASURE = "llmpod"
"""A text that no template contains, for measuring the template's own text."""
MEASURED_TOOL = {"type": "function", "function": {"name": MEASURE, "parameters": {"type": "object", "properties": {}}}}


@dataclass(frozen=True)
class Frame:
    """Text that a chat template adds around messages, in a prompt's visible text (`Prompts.visible`)."""

    head: str = ""  # before the one message of a conversation
    tail: str = ""  # after it
    between: int = 0  # characters around FRAMED_MESSAGES messages, without head and tail
    tools: int = 0  # characters around the tools of a conversation that has some

    @classmethod
    def measured(cls, one: str | None, many: str | None, tools: str | None = None) -> Frame:
        """From the visible texts of conversations of one message, of FRAMED_MESSAGES, and of one with MEASURED_TOOL.

        Every message is MEASURE.
        """
        head, found, tail = (one or "").partition(MEASURE)
        frame = cls(head, tail) if found else cls()
        between = len(frame.without(many)) - FRAMED_MESSAGES * len(MEASURE) if many else 0
        around = len(frame.without(tools)) - len(MEASURE) - len(json.dumps(MEASURED_TOOL)) if tools else 0
        return cls(frame.head, frame.tail, max(0, between), max(0, around))

    def without(self, text: str) -> str:
        """Remove the template's text before and after the messages from a visible text."""
        text = text[_shared(text, self.head) :]
        return text[: len(text) - _shared(reversed(text), reversed(self.tail))]


def conversation(length: int) -> list[Message]:
    """A conversation of so many MEASURE messages, alternating user and assistant, ending with the user."""
    return [Message("user" if turn % 2 == 1 else "assistant", MEASURE) for turn in range(length, 0, -1)]


def _shared(one: Iterable[str], other: Iterable[str]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
