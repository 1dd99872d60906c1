"""What a streamed job says, merged into as few POSTs as the network's pace allows.

Pull-based: the first reply leaves at once; whatever becomes ready while a POST is under way leaves with the next one.
Native replies are not even made in that time, because the engine merges its own output while nobody reads it. Strings
(server-sent events) come from an application that does not wait, so they are read as they come and joined.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Any, TypeGuard

import orjson

Item = dict[str, Any] | str

MAX_POST_BYTES = 1_000_000
"""RunPod takes 1 MB per stream chunk and splits what is larger (docs.runpod.io, operation reference)."""
COMPANY_S = 0.05
_ENVELOPE_BYTES = 1_000  # what surrounds a text in the body
_BYTES_PER_CHAR = 6  # the most that JSON needs for one: an escaped control character
_ROWS = 256  # of logprobs, per part of a reply that is split


def merge(first: Item, second: Item) -> Item | None:
    """One item that says what the two say in order, or None if there is no such item. Changes neither.

    Strings are joined. Native replies are joined choice by choice: texts and logprobs are concatenated, of everything
    else the later value holds.
    """
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    if not _is_native(first) or not _is_native(second):
        return None
    choices: dict[int, dict[str, Any]] = {choice["index"]: dict(choice) for choice in first["choices"]}
    for choice in second["choices"]:
        known = choices.get(choice["index"])
        if known is None:
            choices[choice["index"]] = dict(choice)
            continue
        joined = known | choice | {"text": known["text"] + choice["text"]}
        if "logprobs" in known or "logprobs" in choice:
            joined["logprobs"] = [*(known.get("logprobs") or ()), *(choice.get("logprobs") or ())]
        choices[choice["index"]] = joined
    return first | second | {"choices": list(choices.values())}


def _is_native(item: Item) -> TypeGuard[dict[str, Any]]:
    if not isinstance(item, dict) or not isinstance(item.get("choices"), list) or "object" in item:
        return False
    return all(isinstance(choice.get("text"), str) and "index" in choice for choice in item["choices"])


def split(item: Item, limit_bytes: int = MAX_POST_BYTES) -> Iterator[Item]:
    """The item in parts of at most `limit_bytes` in JSON, where that is possible between characters.

    Strings stay whole: they are events, and RunPod splits what is too large.
    """
    room = (limit_bytes - _ENVELOPE_BYTES) // _BYTES_PER_CHAR
    if isinstance(item, str) or not _is_native(item) or not _may_exceed(item, room, limit_bytes):
        yield item
        return
    last = []
    for choice in item["choices"]:
        text, rows = choice["text"], choice.get("logprobs") or []
        while len(text) > room or len(rows) > _ROWS:
            part = {"index": choice["index"], "text": text[:room]}
            if rows:
                part["logprobs"] = rows[:_ROWS]
            yield {"choices": [part]}
            text, rows = text[room:], rows[_ROWS:]
        if text and item["choices"][-1] is not choice:
            yield {"choices": [{"index": choice["index"], "text": text}]}
            text = ""
        last.append(choice | {"text": text} | ({"logprobs": rows} if "logprobs" in choice else {}))
    yield item | {"choices": last}


def _may_exceed(item: dict[str, Any], room: int, limit_bytes: int) -> bool:
    if sum(len(choice["text"]) for choice in item["choices"]) > room:
        return True
    if any("logprobs" in choice for choice in item["choices"]):
        return len(orjson.dumps(item, default=str)) > limit_bytes - _ENVELOPE_BYTES
    return False


class Deltas:
    """Reads a job's replies in a task of its own, and hands over what is ready.

    Usage: ``async with aclosing(Deltas(replies)) as deltas``, then `next` until it returns None. Closing it closes
    `replies`, whatever they are doing.
    """

    def __init__(self, replies: AsyncGenerator[Item, None], limit_bytes: int = MAX_POST_BYTES) -> None:
        self._replies = replies
        self._limit_bytes = limit_bytes - _ENVELOPE_BYTES
        self._ready: deque[Item] = deque()
        self._ready_bytes = 0
        self._carried = False
        self._arrived = asyncio.Event()
        self._wanted = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def next(self) -> Item | None:
        """Everything that is ready and fits one POST, in order; waits for something. None: that was all."""
        await self._wait()
        if not self._ready:
            await self._reader  # raises what the replies raised
            return None
        item = self._pop()
        if isinstance(item, str):
            item = self._join(item)
            self._wanted.set()
            return item
        while self._ready and (merged := merge(item, self._ready[0])) is not None:
            self._pop()
            item = merged
        return item

    async def _wait(self) -> None:
        """Until something is ready. What was carried over has company after a moment: the engine went on meanwhile."""
        carried, self._carried = self._carried, False
        if self._reader.done() or (self._ready and not carried):
            return
        self._arrived.clear()
        self._wanted.set()
        try:
            async with asyncio.timeout(COMPANY_S if carried else None):
                await self._arrived.wait()
        except TimeoutError:
            if not carried:
                raise

    def carry(self, item: Item) -> None:
        """Put an item that could not be sent in front of what comes next."""
        self._ready.appendleft(item)
        self._ready_bytes += _size(item)
        self._carried = True

    async def aclose(self) -> None:
        """End the replies and wait until they have ended."""
        if self._reader.done() and not self._reader.cancelled():
            self._reader.exception()  # seen: nobody waits for it any more
        self._reader.cancel()
        await asyncio.wait((self._reader,))

    async def _read(self) -> None:
        try:
            async for item in self._replies:
                self._ready.append(item)
                self._ready_bytes += _size(item)
                self._wanted.clear()
                self._arrived.set()
                if isinstance(item, dict) or self._ready_bytes > self._limit_bytes:
                    await self._wanted.wait()
        finally:
            self._arrived.set()
            await self._replies.aclose()

    def _pop(self) -> Item:
        item = self._ready.popleft()
        self._ready_bytes -= _size(item)
        return item

    def _join(self, first: str) -> str:
        parts, size = [first], _size(first)
        while self._ready and isinstance(self._ready[0], str):
            size += _size(self._ready[0])
            if size > self._limit_bytes:
                break
            parts.append(str(self._pop()))
        return "".join(parts)


def _size(item: Item) -> int:
    """A string's bytes in JSON, nearly: quotes and line ends of an event are escaped."""
    if isinstance(item, dict):
        return 0
    return len(item.encode(errors="replace")) + item.count('"') + item.count("\n") + item.count("\\")
