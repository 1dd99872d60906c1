"""Delivery of stream chunks and results to RunPod, with retries.

The calls are those of the SDK (runpod 1.12.0, serverless/modules/rp_http.py): a POST whose body is plain JSON, to the
addresses in RUNPOD_WEBHOOK_POST_STREAM and RUNPOD_WEBHOOK_POST_OUTPUT. The SDK drops a result when a connection breaks
or RunPod answers 429, and creates a retry client per call; here a result is sent until RESULT_DELIVERY_TIMEOUT, over
one connection pool.

Calls have no sequence number, so a repeated result is harmless (the job has ended), but a chunk whose response was lost
arrives twice. A lost chunk would be worse, and the result has the whole answer in both cases.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from llmpod.protocol import RUN_LIMIT_BYTES, RUNSYNC_LIMIT_BYTES
from llmpod.worker.errors import Code, JobError
from llmpod.worker.event_log import Emit, describe
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.plain_json import dumps

CHUNK_PATIENCE_S = 5.0
"""How long a chunk is retried before its text is sent with the next one."""
ATTEMPT_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
_SUSPECT_BYTES = 1_000_000  # a 400 for a body above this is treated as "too large"

_HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded", "Accept-Encoding": "identity"}


class UndeliveredError(Exception):
    """All retries failed; the message is the last failure."""


@dataclass
class Delivery:
    """Sends chunks and results of all jobs of a worker. Raises nothing but CancelledError."""

    session: aiohttp.ClientSession
    emit: Emit
    metrics: Metrics
    stream_url: str  # `$ID` in both addresses stands for the job's id
    done_url: str
    timeout_s: float  # RESULT_DELIVERY_TIMEOUT

    async def chunk(self, job_id: str, item: object, *, patience_s: float = CHUNK_PATIENCE_S) -> bool:
        """Send a stream chunk. False: it did not arrive, and its text should be sent with the next one."""
        url = _address(self.stream_url, job_id, stream=False)
        try:
            status, _ = await self._post(url, dumps({"output": item}), job_id, patience_s)
        except UndeliveredError:
            return False
        if status >= 400:
            self.emit("chunk_refused", level="error", request_id=job_id, status=status)
        return True

    async def result(
        self, job_id: str, result: dict[str, Any], *, stream: bool, patience_s: float | None = None
    ) -> bool:
        """End the job with `result` ({"output": …} or {"error": …}). True: RunPod has it, or an error in its place."""
        url = _address(self.done_url, job_id, stream=stream)
        patience_s = self.timeout_s if patience_s is None else patience_s
        body = dumps(result)
        limit = RUNSYNC_LIMIT_BYTES if job_id.startswith("sync-") else RUN_LIMIT_BYTES
        try:
            status, attempts = (413, 0) if len(body) > limit else await self._post(url, body, job_id, patience_s)
            if status == 413 or (status == 400 and len(body) > _SUSPECT_BYTES):
                self.emit("result_too_large", level="error", request_id=job_id, bytes=len(body), limit=limit)
                message = f"The result has {len(body)} bytes; RunPod accepts {limit}."
                failure = JobError(Code.RESULT_TOO_LARGE, message, bytes=len(body), limit=limit)
                error = {name: value for name, value in result.items() if name == "stopPod"}
                answer = dumps(error | {"error": failure.as_json(job_id)})
                status, attempts = await self._post(url, answer, job_id, patience_s)
            kind = "refused" if status >= 400 else "ok" if attempts == 1 else "retried"
            cause = f"HTTP {status}"
        except UndeliveredError as error:
            kind, cause = "lost", str(error)
        self.metrics.add("llmpod_delivery_total", result=kind)
        if kind in ("ok", "retried"):
            return True
        self.emit("result_lost", level="error", request_id=job_id, cause=cause, bytes=len(body))
        return False

    async def _post(self, url: URL, body: bytes, job_id: str, patience_s: float) -> tuple[int, int]:
        """POST until RunPod has it, or does not want it (4xx other than 429). Returns the status and the attempts.

        Raises:
            UndeliveredError: it failed for `patience_s` seconds.
        """
        give_up = time.monotonic() + patience_s
        pause_s = FIRST_PAUSE_S
        headers = _HEADERS | {"X-Request-ID": _quoted(job_id)}
        attempts = 0
        while True:
            attempts += 1
            attempt = aiohttp.ClientTimeout(total=min(ATTEMPT_S, max(1.0, give_up - time.monotonic())))
            asked_s = 0.0
            try:
                async with self.session.post(url, data=body, headers=headers, timeout=attempt) as response:
                    await response.read()
                    if response.status < 300 or (400 <= response.status < 500 and response.status != 429):
                        return response.status, attempts
                    failure = f"HTTP {response.status}"
                    asked_s = _seconds(response.headers.get("Retry-After"))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = describe(error)
            wait_s = max(asked_s, pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, keeps no secret
            if time.monotonic() + wait_s > give_up:
                raise UndeliveredError(failure)
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _address(template: str, job_id: str, *, stream: bool) -> URL:
    return URL(template.replace("$ID", _quoted(job_id)) + f"&isStream={'true' if stream else 'false'}", encoded=True)


def _quoted(job_id: str) -> str:
    """Quote an id for an address or a header; RunPod's own ids stay unchanged."""
    return quote(job_id, safe="", errors="replace")


def _seconds(retry_after: str | None) -> float:
    return min(float(retry_after), 30.0) if retry_after and retry_after.isdigit() else 0.0
