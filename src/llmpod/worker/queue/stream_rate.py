"""How often streams may speak: seldom enough that they do not slow one another down.

A chunk costs the worker's event loop most of a millisecond (vLLM's events, ours, JSON, a POST), whatever it
holds. A hundred streams with a chunk per token would leave no time for anything else; so the more streams there are,
the more tokens each chunk carries. One stream alone is not held back, and a first chunk never.
"""

from __future__ import annotations

import asyncio
import time


class Pace:
    """The pace of one worker's streams."""

    def __init__(self, min_gap_s: float, chunks_per_s: float) -> None:
        """`min_gap_s`: MIN_STREAM_GAP_MS, in seconds. `chunks_per_s`: MAX_STREAM_CHUNKS_PER_S, of all streams together.

        With 500, each of 100 streams speaks five times a second. Where a POST to RunPod takes longer than a stream's
        turn anyway, nothing changes.
        """
        self._min_gap_s = min_gap_s
        self._chunk_s = 1 / chunks_per_s
        self.streams: set[Turns] = set()  # that have begun and not ended

    @property
    def gap_s(self) -> float:
        """Seconds between two chunks of a stream."""
        return max(self._min_gap_s, self._chunk_s * len(self.streams))

    def stream(self) -> Turns:
        """A stream that counts from its first chunk until it is closed."""
        return Turns(self)


class Turns:
    """When one stream may speak."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last = 0.0

    async def next(self) -> None:
        """Wait until the last turn is long enough ago; the first comes at once."""
        if self._last and (wait_s := self._last + self._pace.gap_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)

    def take(self) -> None:
        """Note that the stream speaks now."""
        self._pace.streams.add(self)
        self._last = time.monotonic()

    def close(self) -> None:
        """The stream has ended."""
        self._pace.streams.discard(self)
