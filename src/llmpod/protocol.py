"""RunPod's documented numbers: payload sizes, request rates, and the REQUEST_COUNT scaling rule.

The one module that worker, endpoint and load tester share. Source: docs.runpod.io, serverless, the pages "Handler
functions" (payload limits), "Send API requests" (rate limits) and "Endpoint settings" (scaling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The pages say 10 MB, 20 MB and 1 MB, and not whether an MB is 10**6 or 2**20: the smaller reading holds under both.
RUN_LIMIT_BYTES = 10_000_000
"""Largest /run request, and largest result of such a job."""
RUNSYNC_LIMIT_BYTES = 20_000_000
"""Largest /runsync request, and largest result of such a job."""
CHUNK_LIMIT_BYTES = 1_000_000
"""Largest chunk of a stream."""

LOAD_BALANCER_LIMIT_BYTES = 30_000_000
"""Largest request and response of a load-balancing endpoint ("Load balancing", Timeouts and limits)."""

RATE_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests in any RATE_WINDOW_S seconds, and how many may be open at once (None: no limit is documented)."""

    per_window: int
    concurrent: int | None


RATES: dict[str, Rate] = {
    "run": Rate(1000, 200),
    "runsync": Rate(2000, 400),
    "status": Rate(2000, 400),
    "status-sync": Rate(2000, 400),
    "stream": Rate(2000, 400),
    "cancel": Rate(100, 20),
    "purge-queue": Rate(2, None),
    "openai": Rate(2000, 400),
    "requests": Rate(10, 2),
}
"""Limits per endpoint and operation. /health is not among the documented ones."""


def request_count_workers(queued: int, running: int, scaler_value: float) -> int:
    """Workers that the REQUEST_COUNT scaler wants: ceil((jobs in queue + jobs in progress) / scalerValue)."""
    return math.ceil((queued + running) / scaler_value)
