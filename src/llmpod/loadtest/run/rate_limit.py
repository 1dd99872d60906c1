"""Client-side rate limits equal to RunPod's, so that a load test does not measure its own 429s.

RunPod counts requests per operation in any 10 s, and how many run at once. A token bucket whose burst is a tenth of the
allowance and whose refill is the other nine tenths spread over 10 s can, in no 10 s, let more than the allowance
through.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from time import perf_counter

from llmpod.protocol import RATE_WINDOW_S, RATES, Rate

RUNPOD_LIMITS = {**RATES, "health": Rate(100, 5)}  # that of /health is not documented: kept modest


class TokenBucket:
    """Token bucket; the caller passes the time."""

    def __init__(self, per_window: int) -> None:
        self._burst = self._tokens = max(1.0, float(per_window // 10))
        # 2 % below the allowance: a sleep that ends late pushes a request towards the next one.
        self._refill_per_s = max(per_window - self._burst, 1.0) / RATE_WINDOW_S * 0.98
        self._at = 0.0

    def take(self, now: float) -> float:
        """Books one token and returns the seconds to wait until it is there. Tokens may be booked ahead, first come,
        first served: a booked token is never taken back, so callers do not race."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._refill_per_s)
            self._at = now
        self._tokens -= 1.0
        return 0.0 if self._tokens >= 0 else -self._tokens / self._refill_per_s


class Gate:
    """One operation's bucket and its places: `async with gate.place(): request`. It counts what it held back."""

    def __init__(self, limit: Rate | None) -> None:
        self.requests, self.waited, self.waited_s = 0, 0, 0.0
        self._bucket = TokenBucket(limit.per_window) if limit else None
        self._places = asyncio.Semaphore(limit.concurrent or 1) if limit else nullcontext()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._places:
            wait_s = self._bucket.take(perf_counter()) if self._bucket is not None else 0.0
            if wait_s > 0:
                self.waited += 1
                self.waited_s += wait_s
                await asyncio.sleep(wait_s)
            self.requests += 1
            yield


def gates(limits: dict[str, Rate] | None) -> dict[str, Gate]:
    """A gate per operation; `None` lets everything through (an endpoint of one's own has no such limits)."""
    found = {name: Gate(limits[name] if limits else None) for name in RUNPOD_LIMITS}
    return {**found, "http": Gate(None)}  # RunPod names no limit for load-balancing endpoints
