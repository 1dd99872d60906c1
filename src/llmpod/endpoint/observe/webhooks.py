"""Webhook delivery: POSTs the status of a job that ended, and retries until it is answered 200."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout

from llmpod.endpoint.options import Options
from llmpod.endpoint.state.job import TERMINAL, Job, JobState
from llmpod.endpoint.state.store import JobStore

TIMEOUT_S = 30
TOLD = {
    "all": TERMINAL,
    "not-cancelled": TERMINAL - {JobState.CANCELLED},
    "completed": frozenset({JobState.COMPLETED}),
}
"""By the option webhook_tells."""


class Webhooks:
    """Follows a store. RunPod documents three tries 10 s apart and 200 as the only success; the body is assumed."""

    def __init__(self, store: JobStore, options: Options) -> None:
        self._options = options
        self._session: ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.delivered = 0
        self.failed = 0
        store.listeners.append(self._on_transition)

    def _on_transition(self, job: Job, was: JobState | None, reason: str) -> None:
        options, request = self._options, job.request
        addresses = (request.webhook, request.extras.get("webhookV2") if options.webhook_v2 else None)
        urls = [url for url in addresses if url is not None]
        if not urls or job.state not in TOLD[options.webhook_tells]:
            return
        status = job.status()
        body = orjson.dumps(status if options.webhook_body == "status" else {"output": status.get("output")})
        for url in urls:
            task = asyncio.get_running_loop().create_task(self._deliver(url, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, url: str, body: bytes) -> None:
        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=TIMEOUT_S))
        for attempt in range(self._options.webhook_attempts):
            if attempt:
                await asyncio.sleep(self._options.webhook_pause_s)
            try:
                headers = {"Content-Type": "application/json"}
                async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    if response.status == 200:
                        self.delivered += 1
                        return
            except (ClientError, TimeoutError, ValueError):
                continue
        self.failed += 1

    async def close(self) -> None:
        """Gives up what is still being tried."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
