"""A load-balancing endpoint as an object: everything wired together, started and stopped as one.

async with LoadBalancer(Options(kind="load-balancer", port=0, command=["python", "app.py"], workers_min=1)) as endpoint:
    await endpoint.ready()
    requests.post(endpoint.url + "/v1/chat/completions", json={...})
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from random import Random
from typing import Any

from aiohttp import web

from llmpod.endpoint.api.control import ControlApi
from llmpod.endpoint.api.http import json_response
from llmpod.endpoint.api.server import page_routes
from llmpod.endpoint.balancer.health import HealthChecks
from llmpod.endpoint.balancer.metrics import Metrics
from llmpod.endpoint.balancer.page_state import BalancerPage
from llmpod.endpoint.balancer.pool import WORKER_HOST, HttpPool
from llmpod.endpoint.balancer.proxy import Proxy
from llmpod.endpoint.balancer.traffic import Ending, Traffic, journal_line
from llmpod.endpoint.balancer.worker import HttpWorker
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options
from llmpod.endpoint.running import RunningEndpoint


class LoadBalancer(RunningEndpoint[HttpWorker]):
    """An endpoint that sends HTTP requests straight to its workers.

    Its port is the workers' alone, as https://ENDPOINT_ID.api.runpod.ai is; page, metrics, control and
    /v2/NAME/health, which RunPod has at other addresses, are on a port of their own.
    """

    def __init__(self, options: Options) -> None:
        random = Random(options.faults.seed)  # noqa: S311 -- decides faults, not secrets
        self.pool = HttpPool(options, time.monotonic)
        super().__init__(self.pool, random, set(), sign="healthy check", start_timeout_s=options.unhealthy_timeout_s)
        assert self.fleet is not None  # Options sees to it
        self.traffic = Traffic(time.monotonic)
        self.traffic.listeners.append(lambda exchange: self.journal.add(journal_line(exchange)))
        self.metrics = Metrics(self.pool, self.traffic, self.fleet)
        page = BalancerPage(self.pool, self.traffic, self.fleet)
        self.control = ControlApi(self.pool, self.fleet, random, page.read)
        self._checks = HealthChecks(self.pool, self.fleet, options, random)
        self._proxy = Proxy(self.pool, self.traffic, options, self._gate, random)

    @property
    def url(self) -> str:
        """Stands for https://ENDPOINT_ID.api.runpod.ai."""
        return self._address(self.port)

    # ------------------------------------------------------------------ life
    async def _open(self) -> list[Coroutine[Any, Any, None]]:
        options = self.options
        self._proxy.open()
        routes = [web.route("*", "/{tail:.*}", self._proxy.handle)]
        self.port = await self._listen(routes, options.port, flag="--port", auto_decompress=False)
        page_port = options.page_port
        if page_port is None:
            page_port = options.port + 1 if options.port else 0
        page = page_routes("load_balancer.html", self.metrics.text, self._gate)
        routes = [*page, web.route("*", "/{tail:.*}", self._other)]
        self.page_port = await self._listen(routes, page_port, flag="--page-port")
        return [self._checks.run()]

    async def close(self, *, graceful: bool = False) -> None:
        self.pool.stop()
        await super().close(graceful=graceful)

    async def _close_ports(self) -> None:
        await super()._close_ports()
        await self._proxy.close()

    def _environment(self, worker_id: str) -> dict[str, str]:
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
        return {"jobs": jobs, "workers": self.pool.counts()}
