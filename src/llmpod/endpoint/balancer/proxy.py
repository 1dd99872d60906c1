"""HTTP proxy of the load balancer: one request goes to one worker, and its answer comes back as it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from random import Random

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from llmpod.endpoint.api.http import json_response, with_faults
from llmpod.endpoint.api.router import Gate
from llmpod.endpoint.balancer import websocket
from llmpod.endpoint.balancer.pool import WORKER_HOST, HttpPool
from llmpod.endpoint.balancer.routing import WORKER_ID, end_to_end, parse_affinity
from llmpod.endpoint.balancer.traffic import Ending, Exchange, Traffic
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options

CONNECT_S = 10.0
NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that the HTTP client would add where the request has none."""


class WorkerError(Exception):
    """The worker did not answer, or not to the end."""


class Upload:
    """A request's body on its way to a worker, counted; `refusal` says why it was not sent to its end."""

    def __init__(self, request: web.Request, exchange: Exchange, options: Options) -> None:
        self._request = request
        self._exchange = exchange
        self._options = options
        self.refusal: ApiError | None = None

    async def stream(self) -> AsyncIterator[bytes]:
        """The blocks as they arrive. Raises ApiError above the limit, and where the body is not what it says."""
        try:
            while block := await self._request.content.readany():
                self._exchange.bytes_in += len(block)
                if self._exchange.bytes_in > self._options.payload_limit_bytes:
                    self.refusal = too_large(self._options)
                    raise self.refusal
                yield block
        except web.RequestPayloadError as error:
            self.refusal = ApiError(400, f"the body cannot be read: {' '.join(str(error).split())}")
            raise self.refusal from None


def too_large(options: Options) -> ApiError:
    return ApiError(options.payload_limit_status, f"the body is above the limit of {options.payload_limit_bytes} bytes")


class Proxy:
    """Answers every request on the load balancer's port."""

    def __init__(self, pool: HttpPool, traffic: Traffic, options: Options, gate: Gate, random: Random) -> None:
        self._pool = pool
        self._traffic = traffic
        self._options = options
        self._gate = gate
        self._random = random
        self._session: ClientSession | None = None

    def open(self) -> None:
        """To be called in the event loop, before the first request."""
        self._session = ClientSession(
            # A connection per request: a kept one can be closed by its worker just when the next request is sent.
            connector=TCPConnector(limit=0, force_close=True),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=NOT_ADDED,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Every request on the load balancer's port."""
        exchange = self._traffic.open(request.method, request.path)
        try:
            return await self._serve(request, exchange)
        except ApiError as error:
            exchange.status = error.status
            return refusal(error)
        except (asyncio.CancelledError, ConnectionError):
            exchange.ending = Ending.CLIENT_LEFT
            raise
        finally:
            self._traffic.close(exchange)

    async def _serve(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        self._gate.check_source(request)
        self._gate.check_client(request)
        if (request.content_length or 0) > self._options.payload_limit_bytes:
            raise too_large(self._options)
        answer = partial(self._from_worker, request, exchange)
        return await with_faults(request, self._pool.faults, "http", self._random, answer)

    async def _from_worker(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        worker = await self._pool.acquire(parse_affinity(request.headers.get(WORKER_ID, "")))
        exchange.worker_id, exchange.wait_ms = worker.id, self._traffic.since_ms(exchange)
        try:
            return await self._pass_on(request, exchange, worker)
        finally:
            self._pool.release(worker, answered=exchange.ending is Ending.ANSWERED)

    async def _pass_on(self, request: web.Request, exchange: Exchange, worker: HttpWorker) -> web.StreamResponse:
        """Raises ApiError while nothing was sent to the client; after that its connection is cut instead."""
        options = self._options
        assert self._session is not None
        upload = Upload(request, exchange, options)
        # As the client wrote it: percent-encoding and dots are the worker's to read.
        target = URL.build(
            scheme="http", host=WORKER_HOST, port=worker.port, path=request.rel_url.raw_path,
            query_string=request.rel_url.raw_query_string, encoded=True,
        )  # fmt: skip
        dropped = ("expect", WORKER_ID.lower(), *(() if options.forward_authorization else ("authorization",)))
        headers = end_to_end(request.headers, *dropped)
        if websocket.asked_for(request):
            relay = await websocket.relay(request, self._session, target, headers, worker.id)
            exchange.status, exchange.ending = 101, Ending.ANSWERED
            return relay
        answer: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(options.request_timeout_s):
                data = upload.stream() if request.can_read_body else None
                upstream = await self._ask(request.method, target, headers, data)
                try:
                    answer = self._answer(upstream, exchange, worker)
                    await answer.prepare(request)
                    await self._copy(upstream, answer, exchange)
                finally:
                    upstream.close()
                exchange.ending = Ending.ANSWERED
                return answer
        except TimeoutError:
            exchange.ending = Ending.TIMED_OUT
            failure = ApiError(options.request_timeout_status, f"no answer within {options.request_timeout_s:g} s")
        except WorkerError as error:
            if upload.refusal is None:
                exchange.ending = Ending.WORKER_FAILED
            failure = upload.refusal or ApiError(502, f"worker {worker.id}: {error}")
        if answer is None or not answer.prepared:
            raise failure
        cut(request, unread=exchange.ending is Ending.TIMED_OUT)
        return answer

    async def _ask(
        self, method: str, target: URL, headers: CIMultiDict[str], data: AsyncIterator[bytes] | None
    ) -> ClientResponse:
        assert self._session is not None
        try:
            return await self._session.request(method, target, headers=headers, data=data, allow_redirects=False)
        except (ClientError, OSError, ValueError) as error:
            raise WorkerError(one_line(error)) from None

    def _answer(self, upstream: ClientResponse, exchange: Exchange, worker: HttpWorker) -> web.StreamResponse:
        length = upstream.content_length
        limit = self._options.payload_limit_bytes
        if self._options.large_response == "refuse" and length is not None and length > limit:
            raise WorkerError(f"its response of {length} bytes is above the limit of {limit}")
        headers = end_to_end(upstream.headers, WORKER_ID.lower())
        headers[WORKER_ID] = worker.id
        exchange.status = upstream.status
        return web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)

    async def _copy(self, upstream: ClientResponse, answer: web.StreamResponse, exchange: Exchange) -> None:
        limit = self._options.payload_limit_bytes if self._options.large_response == "refuse" else None
        while True:
            try:
                block = await upstream.content.readany()
            except (ClientError, OSError) as error:
                raise WorkerError(one_line(error)) from None
            if not block:
                break
            if not exchange.bytes_out:
                exchange.first_byte_ms = self._traffic.since_ms(exchange)
            exchange.bytes_out += len(block)
            if limit is not None and exchange.bytes_out > limit:
                raise WorkerError(f"its response is above the limit of {limit} bytes")
            await answer.write(block)
        await answer.write_eof()


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def refusal(error: ApiError) -> web.Response:
    """An answer of the load balancer itself. The shape for 401 was seen on RunPod, the other is documented."""
    if error.status == 401:
        return json_response({"status": 401, "title": "Unauthorized", "detail": error.message}, 401)
    return json_response({"error": error.message}, error.status)


def cut(request: web.Request, *, unread: bool) -> None:
    """Ends the connection under an answer that is not complete: what was sent arrives, its end does not.

    A client that reads nothing (`unread`) would keep a closing connection open for ever.
    """
    if request.transport is not None:
        (request.transport.abort if unread else request.transport.close)()
