"""Signal: wakes everybody who waits for it, as often as it is sent."""

from __future__ import annotations

import asyncio


class Signal:
    """Cheaper than an asyncio.Event, of which every job would keep one."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    def send(self) -> None:
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was sent within `timeout_s`."""
        one: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(one)
        try:
            await asyncio.wait((one,), timeout=timeout_s)
            return one.done()
        finally:
            # A client that left must not stay in the list for as long as the job lives.
            if one in self.waiting:
                self.waiting.remove(one)
