"""Webhook delivery: POSTs the status of a job that ended, and retries until it is answered 200."""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout

from llmpod.endpoint.options import Options
from llmpod.endpoint.state.job import TERMINAL, Job, JobState
from llmpod.endpoint.state.store import JobStore

TIMEOUT_S = 30


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
        if not self._tells(job.state):
            return
        for url in self._addresses(job):
            task = asyncio.get_running_loop().create_task(self._deliver(url, self._body(job)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _tells(self, state: JobState) -> bool:
        tells = self._options.webhook_tells
        if tells == "completed":
            return state is JobState.COMPLETED
        return state in TERMINAL and not (tells == "not-cancelled" and state is JobState.CANCELLED)

    def _addresses(self, job: Job) -> list[str]:
        request = job.request
        addresses = [request.webhook, request.extras.get("webhookV2") if self._options.webhook_v2 else None]
        return [address for address in addresses if address is not None]

    def _body(self, job: Job) -> bytes:
        status = job.status()
        return orjson.dumps(status if self._options.webhook_body == "status" else {"output": status.get("output")})

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
