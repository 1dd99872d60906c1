"""HTTP client of RunPod's API: sends one call, times it and classifies its failure.

One aiohttp session serves the whole run, so TCP and TLS handshakes are not part of every latency. (httpx's pool is
quadratic in the number of connections: at 64 clients it reported 353 ms for a 50 ms server; aiohttp 52 ms.)
"""

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp

from llmpod.loadtest.environ import Secret
from llmpod.loadtest.intake import REPLY_LIMIT_BYTES, UnreadableError, line, number, read_json
from llmpod.loadtest.run.rate_limit import RUNPOD_LIMITS, Gate, gates
from llmpod.loadtest.run.sse import EventTooLargeError

RUNPOD_BASE = "https://api.runpod.ai/v2"


class CallError(Exception):
    """No usable HTTP reply. `error_class` is one of failures.ERROR_CLASSES."""

    def __init__(self, error_class: str, detail: str) -> None:
        super().__init__(detail)
        self.error_class = error_class
        self.detail = detail


class ReplyTooLargeError(Exception):
    """A reply beyond RunPod's own limit; it is not read to its end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """`sent_s` and `received_s` are perf_counter readings. `body` is None when the reply was not JSON; `text` is its
    beginning. Both are clean: no control characters, no lone surrogates, no key."""

    status: int
    body: Any
    text: str
    sent_s: float
    received_s: float
    retry_after_s: float | None = None

    @property
    def took_ms(self) -> float:
        return (self.received_s - self.sent_s) * 1000

    @property
    def job_status(self) -> str | None:
        """The job's status, when this is a status object."""
        status = self.body.get("status") if isinstance(self.body, dict) else None
        return status if isinstance(status, str) else None


class RunPod:
    """`base_url` ends in the endpoint id: https://api.runpod.ai/v2/abc, or http://127.0.0.1:8000/v2/local."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, key: Secret, gates: dict[str, Gate]) -> None:
        self.gates = gates
        self.rtt_min_ms: float | None = None
        self._session = session
        self._base = base_url.rstrip("/")
        self._key = key
        self._headers = {"Authorization": f"Bearer {key.reveal()}"} if key else {}

    async def call(
        self,
        op: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        timeout_s: float,
        quick: bool = False,
        on_send: Callable[[float], None] | None = None,
    ) -> Reply:
        """One request and its whole reply. `quick`: the service has nothing to wait for, so it may lower the minimum
        round-trip time. `on_send` gets the moment of sending. Raises CallError."""
        async with self.gates[op].place():
            sent_s = perf_counter()
            if on_send is not None:
                on_send(sent_s)
            try:
                async with self._request(method, path, body, timeout_s) as response:
                    raw = await read_whole(response)
                    received_s = perf_counter()
                    retry_after = response.headers.get("Retry-After")
                    status = response.status
            except CAUGHT as error:
                raise self._error(error) from None
        reply = self.reply(status, raw, sent_s, received_s, retry_after)
        if quick and status < 400 and (self.rtt_min_ms is None or reply.took_ms < self.rtt_min_ms):
            self.rtt_min_ms = reply.took_ms
        return reply

    def reply(self, status: int, raw: bytes, sent_s: float, received_s: float, retry_after: str | None) -> Reply:
        """What came back, cleaned: the one place where a reply's bytes become text."""
        text = self._key.redact(raw.decode("utf-8", "replace"))
        try:
            body, beginning = read_json(text, self._key.redact), ""
        except UnreadableError as error:
            body, beginning = None, line(text, 200)
            if beginning.startswith(("{", "[")):
                beginning = f"{error}: {beginning}"
        return Reply(status, body, beginning, sent_s, received_s, _seconds(retry_after))

    @asynccontextmanager
    async def open_stream(
        self, op: str, path: str, body: Any, timeout_s: float, on_send: Callable[[float], None]
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, float]]:
        """A POST whose reply is read as it comes. Yields the response and the moment of sending. Raises CallError."""
        async with self.gates[op].place():
            sent_s = perf_counter()
            on_send(sent_s)
            try:
                async with self._request("POST", path, body, timeout_s) as response:
                    yield response, sent_s
            except CAUGHT as error:
                raise self._error(error) from None

    def _request(
        self, method: str, path: str, body: Any, timeout_s: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Redirects are not followed: the key must not leave the endpoint."""
        return self._session.request(
            method,
            self._base + path,
            json=body,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
        )

    def clean(self, text: str) -> str:
        return self._key.redact(text)

    def _error(self, error: BaseException) -> CallError:
        kind, detail = _explain(error)
        return CallError(kind, line(self._key.redact(detail)))


@asynccontextmanager
async def connected(base_url: str, key: Secret, limits: str) -> AsyncIterator[RunPod]:
    """A client with a session of its own. `limits`: `runpod` keeps RunPod's rate limits, `off` keeps none."""
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield RunPod(session, base_url, key, gates(RUNPOD_LIMITS if limits == "runpod" else None))


async def read_whole(response: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it stays within RunPod's limit, unpacked. Raises ReplyTooLargeError."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > REPLY_LIMIT_BYTES:
            response.close()
            raise ReplyTooLargeError
        parts.append(part)
    return b"".join(parts)


def _seconds(retry_after: str | None) -> float | None:
    try:
        return number(float(retry_after)) if retry_after else None
    except ValueError:
        return None  # the HTTP-date form: rare, and a guess from our clock would be worse than the default


# What a request may raise: aiohttp's errors, the network's, and a reply that is larger than any may be.
CAUGHT = (aiohttp.ClientError, OSError, TimeoutError, ValueError, ReplyTooLargeError)


def _explain(error: BaseException) -> tuple[str, str]:
    """(error class, one line) of what a request raised."""
    name = type(error).__name__
    if isinstance(error, ReplyTooLargeError):
        return "bad_reply", f"a reply larger than {REPLY_LIMIT_BYTES // 2**20} MB, RunPod's own limit"
    if isinstance(error, EventTooLargeError):
        return "bad_reply", str(error)
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(error.__cause__, socket.gaierror):
        host = getattr(error, "host", "the host")
        return "dns", f"cannot resolve {host}: {getattr(error.__cause__ or error, 'strerror', None) or name}"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | ssl.CertificateError):
        return "tls", f"TLS failed: {error}"
    if isinstance(error, TimeoutError):
        return "client_timeout", "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect", f"cannot connect: {os.strerror(error.os_error.errno) if error.os_error.errno else error}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "stream_broken", "the reply broke off"
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return "connect", f"not a usable address: {error}"
    if isinstance(error, aiohttp.ClientResponseError):
        return "bad_reply", f"not HTTP as we know it: {name}"
    return "connect", f"connection lost: {str(error) or name}"
