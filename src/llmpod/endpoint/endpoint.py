"""The endpoint as an object: everything wired together, started and stopped as one.

async with LocalEndpoint(Options(port=0, command=["python", "-u", "handler.py"], workers_min=1)) as endpoint:
    await endpoint.ready()
    requests.post(endpoint.url + "/runsync", json={"input": {...}})
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from random import Random

from aiohttp import web

from llmpod.endpoint.api.control import ControlApi
from llmpod.endpoint.api.page_state import PageState
from llmpod.endpoint.api.router import Api, Gate, json_errors
from llmpod.endpoint.api.server import add_page, listen
from llmpod.endpoint.environ import sdk_config_key
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.fleet.process import check_command
from llmpod.endpoint.fleet.queue_scaler import QueueScaler
from llmpod.endpoint.observe.console import http_log
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


class LocalEndpoint(RunningEndpoint):
    """An endpoint with a queue."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options or Options(port=0, journal="", console=False))
        self._random = Random(self.options.faults.seed)  # noqa: S311 -- decides faults, not secrets
        self.store = JobStore(self.options)
        self.broker = Broker(self.store, self.options, self.options.faults, self._random)
        self.store.listeners.append(self.journal.on_transition)
        self.webhooks = Webhooks(self.store, self.options)
        self.fleet = self._make_fleet() if self.options.fleet else None
        self.metrics = Metrics(self.store, self.broker, self.fleet)
        page = PageState(self.store, self.broker, self.fleet, self.options)
        self.control = ControlApi(self.broker, self.fleet, self._random, page.read)
        self._worker_key = secrets.token_hex(16)
        self._gate = Gate(self.options, {self._worker_key, sdk_config_key() or ""})
        self._api = Api(self.store, self.broker, self.options, self._gate, self._random)
        self._runner: web.AppRunner | None = None
        self.port = self.options.port

    # ------------------------------------------------------------------ where it is
    @property
    def base_url(self) -> str:
        """What RUNPOD_ENDPOINT_BASE_URL must be for RunPod's Python client."""
        return f"{self.options.address(self.port)}/v2"

    @property
    def url(self) -> str:
        """The endpoint itself: `url + "/run"`."""
        return f"{self.base_url}/{self.options.endpoint_id}"

    @property
    def page_url(self) -> str:
        return self.options.address(self.port) + "/"

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
    async def start(self) -> None:
        """Opens the port and starts the fleet. Raises StartError with one line that says what to change."""
        options = self.options
        options.check_exposure()
        if self.fleet is not None:
            check_command(options.command, options.cwd, options.env)
        app = web.Application(middlewares=[json_errors(self.console.report)])
        app.router.add_route("*", "/v2/{tail:.*}", self._api.handle)
        add_page(app, "queue.html", self.metrics.text, self._gate)
        app.router.add_route("*", "/{tail:.*}", self._other)
        self._runner, self.port = await listen(
            app, options.host, options.port, http_log(self.console.report), flag="--port"
        )
        loops = [self._sweep(), self._watch_deadlines(), self.journal.run(), self.console.run()]
        if self.fleet is not None:
            loops.append(self.fleet.run())
        self._keep_running(loops)

    async def _close_ports(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self.webhooks.close()

    # ------------------------------------------------------------------ for tests and benches
    def _up(self) -> list[str]:
        return [worker.id for worker in self.broker.live() if worker.started and worker.takes_jobs]

    def job(self, job_id: str) -> Job:
        """The job as the endpoint knows it. Raises KeyError."""
        return self.store.jobs[job_id]

    def worker(self, worker_id: str) -> Worker:
        """Raises KeyError."""
        return self.broker.workers[worker_id]

    def listen(self, listener: Listener) -> None:
        """Calls `listener(job, state it left or None, reason)` on every transition."""
        self.store.listeners.append(listener)

    def lose_worker(self, worker_id: str, reason: str = "exited") -> None:
        """Says that an external worker is gone, as the fleet does for its own: its jobs are queued again at once."""
        self.broker.lose(self.broker.workers[worker_id], reason)

    # ------------------------------------------------------------------ inside
    def _make_fleet(self) -> Fleet[Worker]:
        fleet = Fleet(
            self.broker,
            QueueScaler(self.store, self.options),
            self.options,
            self._environment,
            self.console.report,
            self.console.log,
            self._random,
            self.store.clock,
            sign="job-take",
            start_timeout_s=self.options.init_timeout_s,
        )
        self.broker.recycle = fleet.retire
        self.broker.crash = lambda worker, reason: fleet.kill(worker.id, reason)
        return fleet

    def _environment(self, worker_id: str) -> Mapping[str, str]:
        return self.options.env | self.worker_env(worker_id)

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
