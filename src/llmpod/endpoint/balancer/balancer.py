"""A load-balancing endpoint as an object: everything wired together, started and stopped as one.

async with LoadBalancer(Options(kind="load-balancer", port=0, command=["python", "app.py"], workers_min=1)) as endpoint:
    await endpoint.ready()
    requests.post(endpoint.url + "/v1/chat/completions", json={...})
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from random import Random

from aiohttp import web

from llmpod.endpoint.api.control import ControlApi
from llmpod.endpoint.api.http import json_response
from llmpod.endpoint.api.router import Gate, json_errors
from llmpod.endpoint.api.server import add_page, listen
from llmpod.endpoint.balancer.health import HealthChecks
from llmpod.endpoint.balancer.metrics import Metrics
from llmpod.endpoint.balancer.page_state import PageState
from llmpod.endpoint.balancer.pool import WORKER_HOST, HttpPool
from llmpod.endpoint.balancer.proxy import Proxy
from llmpod.endpoint.balancer.traffic import Ending, Traffic, journal_line
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.fleet.process import check_command
from llmpod.endpoint.observe.console import http_log
from llmpod.endpoint.options import Options
from llmpod.endpoint.running import RunningEndpoint
from llmpod.endpoint.state.fleet_worker import counts


class LoadBalancer(RunningEndpoint):
    """An endpoint that sends HTTP requests straight to its workers.

    Its port is the workers' alone, as https://ENDPOINT_ID.api.runpod.ai is; page, metrics, control and
    /v2/NAME/health, which RunPod has at other addresses, are on a port of their own.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._random = Random(options.faults.seed)  # noqa: S311 -- decides faults, not secrets
        self.pool = HttpPool(options, time.monotonic)
        self.traffic = Traffic(time.monotonic)
        self.traffic.listeners.append(lambda exchange: self.journal.add(journal_line(exchange)))
        self.fleet: Fleet[HttpWorker] = Fleet(
            self.pool,
            self.pool,
            options,
            self._environment,
            self.console.report,
            self.console.log,
            self._random,
            time.monotonic,
            sign="healthy check",
            start_timeout_s=options.unhealthy_timeout_s,
        )
        self.metrics = Metrics(self.pool, self.traffic, self.fleet)
        page = PageState(self.pool, self.traffic, self.fleet, options)
        self.control = ControlApi(self.pool, self.fleet, self._random, page.read)
        self._checks = HealthChecks(self.pool, self.fleet, options, self._random)
        self._gate = Gate(options, set())
        self._proxy = Proxy(self.pool, self.traffic, options, self._gate, self._random)
        self._runners: list[web.AppRunner] = []
        self.port = options.port
        self.page_port = options.page_port or 0

    @property
    def url(self) -> str:
        """Stands for https://ENDPOINT_ID.api.runpod.ai."""
        return self.options.address(self.port)

    @property
    def page_url(self) -> str:
        return self.options.address(self.page_port) + "/"

    # ------------------------------------------------------------------ life
    async def start(self) -> None:
        """Opens both ports and starts the fleet. Raises StartError with one line that says what to change."""
        options = self.options
        options.check_exposure()
        check_command(options.command, options.cwd, options.env)
        self._proxy.open()
        logger = http_log(self.console.report)
        app = web.Application(middlewares=[json_errors(self.console.report)])
        app.router.add_route("*", "/{tail:.*}", self._proxy.handle)
        beside = web.Application(middlewares=[json_errors(self.console.report)])
        add_page(beside, "load_balancer.html", self.metrics.text, self._gate)
        beside.router.add_route("*", "/{tail:.*}", self._other)
        try:
            runner, self.port = await listen(
                app, options.host, options.port, logger, flag="--port", auto_decompress=False
            )
            self._runners.append(runner)
            page_port = options.page_port
            if page_port is None:
                page_port = options.port + 1 if options.port else 0
            runner, self.page_port = await listen(beside, options.host, page_port, logger, flag="--page-port")
            self._runners.append(runner)
        except BaseException:
            await self._close_ports()
            raise
        loops = [self.fleet.run(), self._checks.run(), self.journal.run(), self.console.run()]
        self._keep_running(loops)

    async def close(self, *, graceful: bool = False) -> None:
        self.pool.stop()
        await super().close(graceful=graceful)

    async def _close_ports(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        await self._proxy.close()

    # ------------------------------------------------------------------ for tests and benches
    def _up(self) -> list[str]:
        return [worker.id for worker in self.pool.workers.values() if worker.routable]

    def worker(self, worker_id: str) -> HttpWorker:
        """Raises KeyError."""
        return self.pool.workers[worker_id]

    # ------------------------------------------------------------------ inside
    def _environment(self, worker_id: str) -> Mapping[str, str]:
        """A worker's variables: nothing of a queue, so that the RunPod SDK does not look for one.

        BIND_HOST asks for what production's network does: that nobody but the load balancer reaches a worker.
        """
        options = self.options
        worker = self.pool.workers[worker_id]
        return (
            {"BIND_HOST": WORKER_HOST}
            | options.env
            | {
                "PORT": str(worker.port),
                "PORT_HEALTH": str(worker.health_port),
                "HEALTH_CHECK_PATH": options.health_check_path,
                "RUNPOD_POD_ID": worker_id,
                "RUNPOD_POD_HOSTNAME": worker_id,
                "RUNPOD_ENDPOINT_ID": options.endpoint_id,
                "RUNPOD_LOG_LEVEL": options.worker_log_level,
            }
        )

    async def _other(self, request: web.Request) -> web.StreamResponse:
        self._gate.check_source(request)
        self._gate.check_client(request)
        if request.path.startswith("/control/"):
            return await self.control.handle(request)
        if request.path == f"/v2/{self.options.endpoint_id}/health" and request.method == "GET":
            return json_response(self._health())
        raise ApiError(404, f"no route {request.method} {request.path}: workers are on port {self.port}")

    def _health(self) -> dict[str, object]:
        """In the shape of a queue's /health, which RunPod answers for load balancers too."""
        totals = self.traffic.totals
        answered = totals[Ending.ANSWERED.value]
        jobs = {
            "completed": answered,
            "failed": totals.total() - answered,
            "inProgress": self.pool.in_flight,
            "inQueue": len(self.pool.waiting),
            "retried": 0,
        }
        return {"jobs": jobs, "workers": counts(self.pool.workers)}
