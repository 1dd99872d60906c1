"""The endpoint as an object: everything wired together, started and stopped as one.

async with LocalEndpoint(Options(port=0, command=["python", "-u", "handler.py"], workers_min=1)) as endpoint:
    await endpoint.ready()
    requests.post(endpoint.url + "/runsync", json={"input": {...}})
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from random import Random
from typing import Any

from aiohttp import web

from llmpod.endpoint.api.control import ControlApi
from llmpod.endpoint.api.page_state import QueuePage
from llmpod.endpoint.api.router import Api
from llmpod.endpoint.api.server import page_routes
from llmpod.endpoint.environ import sdk_config_key
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.observe.metrics import Metrics
from llmpod.endpoint.observe.webhooks import Webhooks
from llmpod.endpoint.options import Options
from llmpod.endpoint.running import RunningEndpoint
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.job import Job
from llmpod.endpoint.state.store import JobStore, Listener
from llmpod.endpoint.state.worker import Worker

RUNNING_SWEEP_S = 0.1
WAITING_SWEEP_S = 1.0


class LocalEndpoint(RunningEndpoint[Worker]):
    """An endpoint with a queue."""

    def __init__(self, options: Options | None = None) -> None:
        options = options or Options(port=0, journal="", console=False)
        random = Random(options.faults.seed)  # noqa: S311 -- decides faults, not secrets
        self.store = JobStore(options)
        self.broker = Broker(self.store, options, random)
        self._worker_key = secrets.token_hex(16)
        keys = {self._worker_key, sdk_config_key() or ""}
        super().__init__(self.broker, random, keys, sign="job-take", start_timeout_s=options.init_timeout_s)
        if (fleet := self.fleet) is not None:
            self.broker.recycle = fleet.retire
            self.broker.crash = lambda worker, reason: fleet.kill(worker.id, reason)
        self.store.listeners.append(self.journal.on_transition)
        self.webhooks = Webhooks(self.store, options)
        self.metrics = Metrics(self.store, self.broker, fleet)
        self.control = ControlApi(self.broker, fleet, random, QueuePage(self.broker, fleet).read)
        self._api = Api(self.store, self.broker, options, self._gate, random)

    # ------------------------------------------------------------------ where it is
    @property
    def base_url(self) -> str:
        """What RUNPOD_ENDPOINT_BASE_URL must be for RunPod's Python client."""
        return f"{self._address(self.port)}/v2"

    @property
    def url(self) -> str:
        """The endpoint itself: `url + "/run"`."""
        return f"{self.base_url}/{self.options.endpoint_id}"

    @property
    def openai_url(self) -> str:
        """The `base_url` of an OpenAI client."""
        return f"{self.url}/openai/v1"

    def worker_env(self, worker_id: str) -> dict[str, str]:
        """The variables that make an SDK process a worker of this endpoint; add them to the environment it should have.

        The `?` in each address is needed: the SDK appends `&name=value` blindly, as production's addresses allow.
        """
        query = "?gpu=local"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID{query}",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID{query}",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID{query}",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID{query}",
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_POD_HOSTNAME": worker_id,
            "RUNPOD_AI_API_KEY": self._worker_key,
            "RUNPOD_ENDPOINT_ID": self.options.endpoint_id,
            "RUNPOD_PING_INTERVAL": str(self.options.ping_interval_ms),
            "RUNPOD_LOG_LEVEL": self.options.worker_log_level,
            # The SDK's own checks want 10 % of the disk free and a way to 8.8.8.8; a laptop need not have either.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        }

    # ------------------------------------------------------------------ life
    async def _open(self) -> list[Coroutine[Any, Any, None]]:
        routes = [
            web.route("*", "/v2/{tail:.*}", self._api.handle),
            *page_routes("queue.html", self.metrics.text, self._gate),
            web.route("*", "/{tail:.*}", self._other),
        ]
        self.port = self.page_port = await self._listen(routes, self.options.port, flag="--port")
        return [self._sweep(), self._watch_deadlines()]

    async def _close_ports(self) -> None:
        await super()._close_ports()
        await self.webhooks.close()

    def _environment(self, worker_id: str) -> dict[str, str]:
        return self.options.env | self.worker_env(worker_id)

    # ------------------------------------------------------------------ for tests and benches
    def job(self, job_id: str) -> Job:
        """The job as the endpoint knows it. Raises KeyError."""
        return self.store.jobs[job_id]

    def listen(self, listener: Listener) -> None:
        """Calls `listener(job, state it left or None, reason)` on every transition."""
        self.store.listeners.append(listener)

    def lose_worker(self, worker_id: str, reason: str = "exited") -> None:
        """Says that an external worker is gone, as the fleet does for its own: its jobs are queued again at once."""
        self.broker.lose(self.broker.workers[worker_id], reason)

    # ------------------------------------------------------------------ inside
    async def _sweep(self) -> None:
        while True:
            self.store.sweep_waiting()
            self.broker.sweep()
            await asyncio.sleep(WAITING_SWEEP_S)

    async def _watch_deadlines(self) -> None:
        while True:
            self.store.sweep_running()
            await asyncio.sleep(RUNNING_SWEEP_S)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        self._gate.check_source(request)
        if request.path.startswith("/control/"):
            self._gate.check_client(request)
            return await self.control.handle(request)
        raise ApiError(405 if request.path in ("/", "/metrics") else 404, f"no route {request.method} {request.path}")
