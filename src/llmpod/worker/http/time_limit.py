"""Time limit after which the event loop reads once more.

A timer that is due runs before the loop reads what came while the process was suspended, or waited for a processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

UNREAD_S = 0.1
"""How much longer than its limit something may take, so that what has arrived is read."""


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """As asyncio.timeout, but the event loop reads once more before the time is over.

    Raises:
        TimeoutError: the time is over.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + UNREAD_S))
        try:
            yield
        finally:
            timer.cancel()
