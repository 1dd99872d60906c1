"""Rate limit for stream chunks, shared by all streams of a worker.

A chunk costs the event loop most of a millisecond (vLLM's events, ours, JSON, a POST or a write), whatever it holds. A
hundred streams with a chunk per token would leave no time for anything else; so the more streams there are, the more
tokens each chunk holds. A worker that sends clearly fewer chunks than it may holds none back: a timer for each chunk
costs as much as it saves. A first chunk never waits.
"""

from __future__ import annotations

import asyncio
import math
import time

STEP = 0.25
"""Of the gap between two chunks of a stream: by so much a chunk may come later, for the company of others."""
FREE = 0.75
"""Share of the rate below which nothing is held back. Streams that take turns stay above it: their chunks come somewhat
later than they may."""
BURST_S = 0.1
"""What is left of that share in so many seconds may be used later; what exceeds it counts as long."""


class Pace:
    """Rate limit of one worker's streams."""

    def __init__(self, min_gap_s: float, chunks_per_s: float) -> None:
        """`min_gap_s`: MIN_STREAM_GAP_MS, in seconds. `chunks_per_s`: MAX_STREAM_CHUNKS_PER_S, of all streams.

        With 500, each of 100 streams sends five chunks per second. Where a POST to RunPod takes longer than that
        interval, nothing changes.
        """
        self.min_gap_s = min_gap_s
        self._chunk_s = 1 / chunks_per_s
        self._free_at = -math.inf  # when the chunks sent so far would have been sent at the free share of the rate
        self.streams: set[Turns] = set()  # that have begun and not ended

    @property
    def gap_s(self) -> float:
        """Seconds between two chunks of a stream."""
        return max(self.min_gap_s, self._chunk_s * len(self.streams))

    def count(self, now: float) -> bool:
        """Account for a chunk that is sent now; returns whether all streams together stay within the free share."""
        self._free_at = min(max(self._free_at, now - BURST_S) + self._chunk_s / FREE, now + BURST_S)
        return self._free_at <= now

    def stream(self) -> Turns:
        """Register a stream; it counts from its first chunk until it is closed."""
        return Turns(self)


class Turns:
    """Rate limit of one stream."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._due = 0.0  # when the next chunk may be sent

    async def next(self) -> None:
        """Wait until the next chunk may be sent; the first may at once."""
        if (wait_s := self._due - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)

    def take(self) -> None:
        """Record that a chunk is sent now."""
        self._pace.streams.add(self)
        now = time.monotonic()
        if self._pace.count(now):
            self._due = now + self._pace.min_gap_s
            return
        # Streams whose chunks are due at about the same time wake together, which shares turns of the event loop.
        gap_s = self._pace.gap_s
        step_s = gap_s * STEP
        self._due = math.ceil((now + gap_s) / step_s) * step_s

    def close(self) -> None:
        """Unregister the stream."""
        self._pace.streams.discard(self)
