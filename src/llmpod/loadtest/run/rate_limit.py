"""Client-side rate limits equal to RunPod's, so that a load test does not measure its own 429s.

RunPod counts requests per operation in any 10 s, and how many run at once. A token bucket whose burst is a tenth of the
allowance and whose refill is the other nine tenths spread over 10 s can, in no 10 s, let more than the allowance
through.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter

from llmpod.protocol import RATE_WINDOW_S, RATES


@dataclass(frozen=True, slots=True)
class Limit:
    """`per_10s` requests in any 10 seconds, `at_once` of them open at the same time."""

    per_10s: int
    at_once: int


RUNPOD_LIMITS: dict[str, Limit] = {
    name: Limit(rate.per_window, rate.concurrent or 1) for name, rate in RATES.items()
} | {"health": Limit(100, 5)}  # not documented: kept modest


@dataclass(slots=True)
class TokenBucket:
    """Token bucket; the caller passes the time.

    `take(now)` books one token and returns the seconds to wait until it is there. Tokens may be booked ahead, first
    come, first
    served: a booked token is never taken back, so callers do not race.
    """

    per_10s: int
    _tokens: float = -1.0
    _at: float = 0.0

    def __post_init__(self) -> None:
        self._tokens = self.burst

    @property
    def burst(self) -> float:
        return max(1.0, float(self.per_10s // 10))

    @property
    def refill_per_s(self) -> float:
        # 2 % below the allowance: a sleep that ends late pushes a request towards the next one.
        return max(self.per_10s - self.burst, 1.0) / RATE_WINDOW_S * 0.98

    def take(self, now: float) -> float:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.refill_per_s)
            self._at = now
        self._tokens -= 1.0
        return 0.0 if self._tokens >= 0 else -self._tokens / self.refill_per_s


@dataclass(slots=True)
class BucketUse:
    """Use of one operation's limit."""

    requests: int = 0
    waited: int = 0
    waited_s: float = 0.0


class Gate:
    """One operation's bucket and its places: `async with gate.place(): request`."""

    def __init__(self, limit: Limit | None) -> None:
        self.use = BucketUse()
        self._bucket = TokenBucket(limit.per_10s) if limit else None
        self._places = asyncio.Semaphore(limit.at_once) if limit else nullcontext()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._places:
            wait_s = self._bucket.take(perf_counter()) if self._bucket is not None else 0.0
            if wait_s > 0:
                self.use.waited += 1
                self.use.waited_s += wait_s
                await asyncio.sleep(wait_s)
            self.use.requests += 1
            yield


def gates(limits: dict[str, Limit] | None) -> dict[str, Gate]:
    """A gate per operation; `None` lets everything through (an endpoint of one's own has no such limits)."""
    found = {name: Gate(limits[name] if limits else None) for name in RUNPOD_LIMITS}
    return {**found, "http": Gate(None)}  # RunPod names no limit for load-balancing endpoints
