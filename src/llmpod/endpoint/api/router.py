"""Router: maps paths to operations, and checks keys, hosts, rates and faults."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from aiohttp import web
from aiohttp.typedefs import Middleware

from llmpod.endpoint.api.client import ClientApi
from llmpod.endpoint.api.http import json_response, with_faults
from llmpod.endpoint.api.openai import OpenAiApi
from llmpod.endpoint.api.rate_limit import RateWindow
from llmpod.endpoint.api.worker import WorkerApi
from llmpod.endpoint.environ import is_loopback
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.store import JobStore
from llmpod.protocol import RATES

Handler = Callable[..., Awaitable[web.StreamResponse]]

MAX_LINE_BYTES = 256 * 1024
"""A ping names every job its worker holds in the URL: the SDK's list of 64 KiB, percent-encoded."""
KEEPALIVE_S = 75.0
"""Longer than the 15 s for which aiohttp clients keep idle connections, so that no POST meets a closing one."""


@dataclass(frozen=True)
class Operation:
    """One operation of the API: methods, what runs, how many path segments follow its name, and who may call it."""

    methods: tuple[str, ...]
    handler: Handler
    segments: int
    worker_side: bool = False


class Gate:
    """Whether a request may come in at all: key, Host and Origin."""

    def __init__(self, options: Options, worker_keys: set[str]) -> None:
        self._key = options.api_key
        self._worker_keys = {key for key in worker_keys if key} | ({options.api_key} if options.api_key else set())
        self._loopback = is_loopback(options.host)

    def check_source(self, request: web.Request) -> None:
        """Refuses what a web page of another site sends. Raises ApiError 403.

        Without a key, all that protects a loopback service is that browsers name the site they speak for: a foreign
        Origin is a cross-site request, a foreign Host a name that was rebound to 127.0.0.1. Images and scripts are
        fetched without an Origin, but with Sec-Fetch-Site.
        """
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise ApiError(403, "requests from other web sites are refused")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            raise ApiError(403, "requests from other web sites are refused")
        if self._key is None and self._loopback and not is_loopback(host_name(request.host)):
            raise ApiError(403, "this endpoint answers to loopback names only")

    def check_client(self, request: web.Request) -> None:
        """Raises ApiError 401 unless the request carries the key, as Bearer or bare."""
        if self._key is not None and not same(credential(request), {self._key}):
            raise ApiError(401, "missing or wrong API key")

    def check_worker(self, request: web.Request) -> None:
        """Raises ApiError 401 unless the request carries a worker's key or the endpoint's."""
        if self._key is not None and not same(credential(request), self._worker_keys):
            raise ApiError(401, "missing or wrong worker key")


def host_name(host: str) -> str:
    """A Host header without its port; whatever else is in it stays, so that only a clean name can be loopback's."""
    return re.sub(r":[0-9]*$", "", host.lower())


def credential(request: web.Request) -> str:
    """What the Authorization header holds, without `Bearer`."""
    return request.headers.get("Authorization", "").removeprefix("Bearer ").strip()


def same(given: str, keys: set[str]) -> bool:
    """Constant-time membership. A header may hold any bytes; the framework keeps what is not UTF-8 as surrogates."""
    said = given.encode(errors="surrogateescape")
    return sum(hmac.compare_digest(said, key.encode()) for key in keys) > 0


class Api:
    """Dispatches /v2/<endpoint>/<operation>/... by a table: one look-up per request, JSON for every refusal."""

    def __init__(self, store: JobStore, broker: Broker, options: Options, gate: Gate, random: Random) -> None:
        self._broker = broker
        self._options = options
        self._gate = gate
        self._random = random
        self._clock = store.clock
        self._windows = {name: RateWindow(rate) for name, rate in RATES.items()}
        client = ClientApi(store, broker, options)
        worker = WorkerApi(store, broker, options)
        self._openai = OpenAiApi(store, options)
        both = ("GET", "POST")
        self.operations: dict[str, Operation] = {
            "run": Operation(("POST",), client.run, 0),
            "runsync": Operation(("POST",), client.runsync, 0),
            "status": Operation(both, client.status, 1),
            "status-sync": Operation(both, client.status_sync, 1),
            "stream": Operation(both, client.stream, 1),
            "cancel": Operation(("POST",), client.cancel, 1),
            "retry": Operation(("POST",), client.retry, 1),
            "purge-queue": Operation(("POST",), client.purge_queue, 0),
            "health": Operation(("GET",), client.health, 0),
            "requests": Operation(("GET",), client.requests, 0),
            "job-take": Operation(("GET",), worker.take, 1, worker_side=True),
            "job-take-batch": Operation(("GET",), worker.take_batch, 1, worker_side=True),
            "job-stop": Operation(("GET",), worker.stop, 1, worker_side=True),
            "job-stream": Operation(("POST",), worker.stream_chunk, 2, worker_side=True),
            "job-done": Operation(("POST",), worker.done, 2, worker_side=True),
            "ping": Operation(("GET",), worker.ping, 1, worker_side=True),
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Every request below /v2/. Raises ApiError, which `json_errors` answers."""
        self._gate.check_source(request)
        endpoint, _, rest = request.path.removeprefix("/v2/").partition("/")
        if endpoint != self._options.endpoint_id:
            raise ApiError(404, f"no endpoint {endpoint}")
        name, _, tail = rest.partition("/")
        if name == "openai":
            self._gate.check_client(request)
            if request.method not in ("GET", "POST"):
                raise ApiError(405, f"{request.method} is not allowed here")
            return await self._limited(name, self._openai.call, request, f"/{tail}")
        operation = self.operations.get(name)
        segments = tail.split("/") if tail else []
        if operation is None or len(segments) != operation.segments or not all(segments):
            raise ApiError(404, f"no route {request.path}")
        if operation.worker_side:
            self._gate.check_worker(request)
        else:
            self._gate.check_client(request)
        if request.method not in operation.methods:
            raise ApiError(405, f"{request.method} is not allowed here, use {' or '.join(operation.methods)}")
        if operation.worker_side:
            kind = "job-take" if name == "job-take-batch" else name
            answer = partial(operation.handler, request, *segments)
            return await with_faults(request, self._broker.faults, kind, self._random, answer)
        return await self._limited(name, operation.handler, request, *segments)

    async def _limited(self, name: str, handler: Handler, request: web.Request, *segments: str) -> web.StreamResponse:
        window = self._windows.get(name)
        if window is None or not self._options.rate_limits:
            return await handler(request, *segments)
        running = self._broker.counts()["running"] if self._options.requests_per_worker else 0
        if not window.admit(self._clock(), running, self._options.requests_per_worker):
            raise ApiError(429, f"more than {window.rate.per_window} {name} requests in 10 s, or too many at once")
        try:
            return await handler(request, *segments)
        finally:
            window.leave()


def json_errors(report: Callable[[str], None]) -> Middleware:
    """The one place where errors become answers: JSON with a code, and never a traceback."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return json_response({"error": error.message}, error.status)
        except web.HTTPException as error:
            return json_response({"error": error.reason}, error.status)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 -- the edge of a request: an internal error must not reach the client
            report(f"internal error in {request.method} {request.path}: {error!r}")
            return json_response({"error": "internal error"}, 500)

    return middleware
