"""Reader of a job's output: a whole one, or its chunks in order.

An output is an object (answer.py), a list of them, or text: the official vLLM worker sends lists of batches, and
raw server-sent events as text.
"""

import re
from collections.abc import Callable
from typing import Any

from llmpod.loadtest.intake import UnreadableError, read_json
from llmpod.loadtest.run.answer import Answer, all_of, joined, read_object, said
from llmpod.loadtest.run.sse import EventTooLargeError, SseParser

_EVENT_TEXT = re.compile(r"\s*(?:event:[^\n]*\n\s*|id:[^\n]*\n\s*)*data:\s*(?:\{|\[DONE\])")
_COMMENTS = re.compile(r"\s*(?::[^\n]*\n\s*)*")


def read_output(output: Any) -> Answer:
    """A whole output. A list is read as the chunks of one answer."""
    reading = Reading()
    reading.take(output)
    return reading.close()


class Reading:
    """Reads the chunks of one answer in order; `whole` is the answer so far.

    Workers that pass on raw server-sent events cut them anywhere, so their text is parsed across chunks.
    """

    def __init__(self) -> None:
        self.whole = Answer()
        self._events: SseParser | None = None

    def take(self, output: Any) -> Answer:
        return self._add(self._read(output))

    def event(self, data: str, redact: Callable[[str], str]) -> Answer:
        """Takes one server-sent event's data, as it came from the service."""
        return self._add(read_event(redact(data), redact))

    def close(self) -> Answer:
        """The whole answer, an event without its blank line included."""
        if self._events is not None and self._events.pending:
            self._add(all_of(map(read_event, self._events.feed(b"\n\n"))))
        return self.whole

    def _add(self, piece: Answer) -> Answer:
        self.whole = joined(self.whole, piece)
        return piece

    def _read(self, output: Any) -> Answer:
        if isinstance(output, list):
            return all_of(self._read(item) for item in output)
        if isinstance(output, str):
            return self._text(output)
        if isinstance(output, dict):
            return read_object(output)
        return Answer(content=output is not None)

    def _text(self, text: str) -> Answer:
        begins = _EVENT_TEXT.match(text) is not None
        comments = _COMMENTS.match(text)
        if self._events is None and not begins and not (comments and _EVENT_TEXT.match(text, comments.end())):
            return said(text)
        parser = self._events = self._events or SseParser()
        raw = text.encode("utf-8", "replace")
        try:
            # A worker that sends lines leaves out the blank line between two events.
            return all_of(map(read_event, parser.feed(b"\n\n" + raw if begins and parser.pending else raw)))
        except EventTooLargeError as error:
            return Answer(error=str(error))


def read_event(data: str, redact: Callable[[str], str] = str) -> Answer:
    """One server-sent event's data. Text that is not JSON is an error: no API sends that."""
    if data.strip() == "[DONE]":
        return Answer(known=True, ended=True)
    try:
        event = read_json(data, redact)
    except UnreadableError as error:
        return Answer(error=f"an event that is not JSON ({error}): {data[:100]}")
    return read_object(event) if isinstance(event, dict) else Answer(content=bool(event))
