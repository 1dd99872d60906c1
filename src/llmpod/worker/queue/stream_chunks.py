"""Stream chunks: merges a job's replies while the previous chunk is being posted.

Pull-based: the first reply is sent at once; what becomes ready during a POST is sent with the next one. It is not even
created in that time, because the engine merges its output while nobody reads it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Any, TypeGuard

import orjson

from llmpod.protocol import CHUNK_LIMIT_BYTES

Item = dict[str, Any] | str

COMPANY_S = 0.05
_ENVELOPE_BYTES = 1_000  # what surrounds a text in the body
_BYTES_PER_CHAR = 6  # the most that JSON needs for one: an escaped control character
_ROWS = 256  # of logprobs, per part of a reply that is split


def merge(first: Item, second: Item) -> Item | None:
    """Merge two items in order; None if they cannot be merged. Changes neither.

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


def split(item: Item, limit_bytes: int = CHUNK_LIMIT_BYTES) -> Iterator[Item]:
    """Split an item into parts of at most `limit_bytes` in JSON, between characters where possible.

    Strings stay whole: they are events, and RunPod splits what is too large.
    """
    max_chars = (limit_bytes - _ENVELOPE_BYTES) // _BYTES_PER_CHAR
    if isinstance(item, str) or not _is_native(item) or not _may_exceed(item, max_chars, limit_bytes):
        yield item
        return
    last = []
    for choice in item["choices"]:
        text, rows = choice["text"], choice.get("logprobs") or []
        while len(text) > max_chars or len(rows) > _ROWS:
            part = {"index": choice["index"], "text": text[:max_chars]}
            if rows:
                part["logprobs"] = rows[:_ROWS]
            yield {"choices": [part]}
            text, rows = text[max_chars:], rows[_ROWS:]
        if text and item["choices"][-1] is not choice:
            yield {"choices": [{"index": choice["index"], "text": text}]}
            text = ""
        last.append(choice | {"text": text} | ({"logprobs": rows} if "logprobs" in choice else {}))
    yield item | {"choices": last}


def _may_exceed(item: dict[str, Any], max_chars: int, limit_bytes: int) -> bool:
    if sum(len(choice["text"]) for choice in item["choices"]) > max_chars:
        return True
    if any("logprobs" in choice for choice in item["choices"]):
        return len(orjson.dumps(item, default=str)) > limit_bytes - _ENVELOPE_BYTES
    return False


class Deltas:
    """Reads a job's replies on demand: the engine merges what is not read yet.

    Usage: ``async with aclosing(Deltas(replies)) as deltas``, then `next` until it returns None. Closing it closes
    `replies`, whatever they are doing.
    """

    def __init__(self, replies: AsyncGenerator[Item, None], limit_bytes: int = CHUNK_LIMIT_BYTES) -> None:
        self._replies = replies
        self._limit_bytes = limit_bytes - _ENVELOPE_BYTES
        self._ready: deque[Item] = deque()
        self._carried = False
        self._coming: asyncio.Task[Item | None] | None = None

    async def next(self) -> Item | None:
        """Wait for the next item: all that is ready, up to one POST. None: the replies have ended."""
        if not self._ready:
            return await self._pull()
        if self._carried:
            await self._company()
        item = self._ready.popleft()
        while self._ready and (joined := self._joined(item, self._ready[0])) is not None:
            self._ready.popleft()
            item = joined
        return item

    def carry(self, item: Item) -> None:
        """Put back an item that could not be sent, before the next one."""
        self._ready.appendleft(item)
        self._carried = True

    async def aclose(self) -> None:
        """Close the replies and wait until they have ended."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait((self._coming,))
            if not self._coming.cancelled():
                self._coming.exception()  # marks it as retrieved
        await self._replies.aclose()

    async def _pull(self) -> Item | None:
        coming, self._coming = self._coming, None
        return await (coming or anext(self._replies, None))

    async def _company(self) -> None:
        """Wait a moment for a reply to send with the item that was carried over."""
        self._carried = False
        if self._coming is None:
            self._coming = asyncio.ensure_future(anext(self._replies, None))
        await asyncio.wait((self._coming,), timeout=COMPANY_S)
        if self._coming.done() and not self._coming.exception() and (item := self._coming.result()) is not None:
            self._ready.append(item)
            self._coming = None

    def _joined(self, first: Item, second: Item) -> Item | None:
        if isinstance(first, str) and _size(first) + _size(second) > self._limit_bytes:
            return None
        return merge(first, second)


def _size(item: Item) -> int:
    """Estimated bytes of a string in JSON: quotes and line ends of an event are escaped."""
    if isinstance(item, dict):
        return 0
    return len(item.encode(errors="replace")) + item.count('"') + item.count("\n") + item.count("\\")
