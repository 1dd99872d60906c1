"""Rate limit for stream chunks, shared by all streams of a worker.

A chunk costs the event loop most of a millisecond (vLLM's events, ours, JSON, a POST or a write), whatever it holds. A
hundred streams with a chunk per token would leave no time for anything else; so the more streams there are, the more
tokens each chunk holds. A single stream is hardly limited, and a first chunk never is.
"""

from __future__ import annotations

import asyncio
import math
import time

STEP = 0.25
"""Of the gap between two chunks of a stream: by so much a chunk may come later, for the company of others."""


class Pace:
    """Rate limit of one worker's streams."""

    def __init__(self, min_gap_s: float, chunks_per_s: float) -> None:
        """`min_gap_s`: MIN_STREAM_GAP_MS, in seconds. `chunks_per_s`: MAX_STREAM_CHUNKS_PER_S, of all streams.

        With 500, each of 100 streams sends five chunks per second. Where a POST to RunPod takes longer than that
        interval, nothing changes.
        """
        self.min_gap_s = min_gap_s
        self._chunk_s = 1 / chunks_per_s
        self.streams: set[Turns] = set()  # that have begun and not ended

    @property
    def gap_s(self) -> float:
        """Seconds between two chunks of a stream."""
        return max(self.min_gap_s, self._chunk_s * len(self.streams))

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
        now, gap_s = time.monotonic(), self._pace.gap_s
        # A chunk that comes a whole gap later than it might is followed without a wait: a timer for each chunk of a
        # stream that is slower than its limit costs more than it saves.
        slow = self._due and now - self._due >= gap_s
        due = now + (self._pace.min_gap_s if slow else gap_s)
        # Streams whose chunks are due at about the same time wake together, which shares turns of the event loop.
        step_s = gap_s * STEP
        self._due = due if slow else math.ceil(due / step_s) * step_s

    def close(self) -> None:
        """Unregister the stream."""
        self._pace.streams.discard(self)
