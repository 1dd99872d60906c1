"""Server-sent events as bytes: splitting, joining, merging and parsing.

vLLM writes an event per token; RunPod's stream takes text, up to 1 MB a yield. So events are cut at their blank line,
never inside one, and those that wait are sent together: adjacent texts as one event, other events side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import orjson

from llmpod.protocol import CHUNK_LIMIT_BYTES

_END = re.compile(rb"\r\n\r\n|\n\n")
_DONE = b"data: [DONE]"
_TEXT_DELTA = re.compile(
    rb'(.*?"delta":[^"]*(?:"(?:tool_calls|index|function)":[^"]*|"type":"\w+",)*'
    rb'"(?:content|reasoning|text|thinking|partial_json|arguments)":")'
    rb'([^"\\]*(?:\\.[^"\\]*)*)'
    rb'("(?:[\]}]|,"\w+":null)*\s*)',
    re.DOTALL,
)
"""An event that does nothing but add to one text: what precedes the text, the text as JSON, only nulls after it."""
JOINED_BYTES = 16_384
"""Size limit of a joined event: clients read an event as a whole."""


class Splitter:
    """Splits a byte stream into events; each keeps its blank line, so joining them restores the stream."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Add `piece`; returns the events that it completes."""
        self._rest += piece
        events = []
        start = 0
        for end in _END.finditer(self._rest):
            events.append(self._rest[start : end.end()])
            start = end.end()
        self._rest = self._rest[start:]
        return events

    def rest(self) -> bytes:
        """Bytes after the last whole event; empty if the stream ended properly."""
        return self._rest


def join(events: Iterable[bytes]) -> Iterator[bytes]:
    """Join adjacent events that add to the same text; clients that add deltas up read the same answer.

    For streams that vLLM's parsers read token by token: each token is an event then, however many arrive at once.
    """
    head, text, tail = b"", b"", b""
    for event in events:
        found = _TEXT_DELTA.fullmatch(event)
        if found is not None and found[1] == head and found[3] == tail and len(text) < JOINED_BYTES:
            text += found[2]
            continue
        if tail:
            yield head + text + tail
        head, text, tail = found.groups() if found is not None else (b"", b"", b"")
        if found is None:
            yield event
    if tail:
        yield head + text + tail


def merge(events: Iterable[bytes], limit: int = CHUNK_LIMIT_BYTES) -> Iterator[bytes]:
    """Join events into chunks of at most `limit` bytes. A longer event is a chunk of its own."""
    chunk: list[bytes] = []
    size = 0
    for event in events:
        if chunk and size + len(event) > limit:
            yield b"".join(chunk)
            chunk, size = [], 0
        chunk.append(event)
        size += len(event)
    if chunk:
        yield b"".join(chunk)


def is_last(event: bytes) -> bool:
    """Whether the event ends a successful stream, on any route."""
    return event.startswith(
        (_DONE, b"event: message_stop", b"event: response.completed", b"event: response.incomplete")
    )


def parse_data(event: bytes) -> object:
    """The JSON value in an event's data; None if there is none."""
    try:
        return orjson.loads(event[event.find(b"data: ") + 6 :])
    except orjson.JSONDecodeError:
        return None


def failure(event: bytes) -> dict[str, object] | None:
    """The error object of an event that reports a failed stream; None for other events.

    Chat and completions send data: {"error": {…}}, messages {"type": "error", …}, responses a response.failed event.
    """
    start = event.find(b"data: ")
    # Checked before parsing: this runs for every token.
    head = event[start + 6 : start + 60].replace(b" ", b"")
    named = event.startswith((b"event: error", b"event: response.failed"))
    if not (named or head.startswith((b'{"error":', b'{"type":"error"', b'{"object":"error"'))):
        return None
    try:
        payload = orjson.loads(event[start + 6 :])
    except orjson.JSONDecodeError:
        return {"message": "The stream failed.", "type": "InternalServerError", "param": None, "code": 500}
    if isinstance(payload, dict):
        inner = payload.get("error") or (payload.get("response") or {}).get("error")
        if isinstance(inner, dict):
            return inner
        return {name: value for name, value in payload.items() if name != "object"}
    return {"message": str(payload), "type": "InternalServerError", "param": None, "code": 500}


def with_field(event: bytes, name: str, value: object) -> bytes:
    """Add a field at the front of the event's JSON object; unchanged if the event has none."""
    head, mark, tail = event.partition(b"data: {")
    if not mark:
        return event
    comma = b"" if tail.lstrip()[:1] == b"}" else b","
    return head + mark + orjson.dumps(name) + b":" + orjson.dumps(value) + comma + tail
