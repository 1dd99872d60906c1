"""Control API (/control/*) for the page and for changes while the endpoint runs. Not part of RunPod's API."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Generic

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpod.endpoint.api.http import bad_request, json_response, read_body
from llmpod.endpoint.api.rate_limit import parse_json
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.faults import Faults
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.state.fleet_worker import W, WorkerPool

BODY_LIMIT_BYTES = 64 * 1024
LOG_LINES_SHOWN = 400


class Scale(BaseModel):
    """The body of POST /control/scale."""

    model_config = ConfigDict(strict=True, extra="forbid")

    workersMin: int | None = Field(None, ge=0)  # noqa: N815 -- RunPod's name
    workersMax: int | None = Field(None, ge=0)  # noqa: N815 -- RunPod's name


class ControlApi(Generic[W]):
    """`state` gives what the page shows, from the number of ended jobs that it has seen (text of a query)."""

    def __init__(
        self, pool: WorkerPool[W], fleet: Fleet[W] | None, random: Random, state: Callable[[str], dict[str, object]]
    ) -> None:
        self.pool = pool
        self.fleet = fleet
        self.random = random
        self.state = state

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """GET state, faults, workers/ID/logs; POST faults, scale, workers/ID/kill|stop|freeze|thaw. Raises ApiError."""
        match request.method, request.path.removeprefix("/control/").split("/"):
            case "GET", ["state"]:
                return json_response(self.state(request.query.get("after", "")))
            case "GET", ["faults"]:
                return json_response(self.pool.faults.model_dump())
            case (("POST" | "PATCH"), ["faults"]):
                return json_response(self.set_faults(await self._object(request)).model_dump())
            case "POST", ["scale"]:
                return json_response(self.set_scale(await self._object(request)))
            case "GET", ["workers", worker_id, "logs"]:
                lines = list(self._worker(worker_id).logs)[-LOG_LINES_SHOWN:]
                return json_response({"worker": worker_id, "lines": lines})
            case "POST", ["workers", worker_id, ("kill" | "stop" | "freeze" | "thaw") as action]:
                self.act(self._worker(worker_id), action)
                return json_response({"worker": worker_id, "status": "ok"})
            case _, ["state" | "faults" | "scale"] | ["workers", _, "logs" | "kill" | "stop" | "freeze" | "thaw"]:
                raise ApiError(405, f"{request.method} is not allowed here")
            case _:
                raise ApiError(404, f"no route {request.path}")

    def set_faults(self, changes: dict[str, object]) -> Faults:
        """Changes the given knobs and leaves the others. Raises ApiError 400 and changes nothing when one is wrong."""
        try:
            self.pool.faults = Faults.model_validate(self.pool.faults.model_dump() | changes)
        except ValidationError as error:
            raise bad_request(error) from None
        if changes.get("seed") is not None:
            self.random.seed(self.pool.faults.seed)
        return self.pool.faults

    def set_scale(self, changes: dict[str, object]) -> dict[str, int]:
        """Changes workersMin and workersMax. Raises ApiError 400 and changes nothing when they do not fit."""
        if self.fleet is None:
            raise ApiError(400, "this endpoint starts no workers")
        try:
            scale = Scale.model_validate(changes)
        except ValidationError as error:
            raise bad_request(error) from None
        least = self.fleet.workers_min if scale.workersMin is None else scale.workersMin
        most = self.fleet.workers_max if scale.workersMax is None else scale.workersMax
        if least > most:
            raise ApiError(400, f"workersMin ({least}) is above workersMax ({most})")
        self.fleet.workers_min, self.fleet.workers_max = least, most
        self.fleet.look()
        return {"workersMin": least, "workersMax": most}

    def act(self, worker: W, action: str) -> None:
        """Kills, stops, freezes or thaws a worker's processes. Raises ApiError 400 when we have none."""
        fleet = self.fleet
        if fleet is None or worker.id not in fleet.processes:
            raise ApiError(400, f"worker {worker.id} has no process of this endpoint")
        match action:
            case "kill":
                fleet.kill(worker.id)
            case "stop":
                fleet.retire(worker, "stopped on request")
            case _:
                fleet.freeze(worker.id, frozen=action == "freeze")

    def _worker(self, worker_id: str) -> W:
        worker = self.pool.workers.get(worker_id)
        if worker is None:
            raise ApiError(404, f"no worker {worker_id}")
        return worker

    async def _object(self, request: web.Request) -> dict[str, object]:
        value = parse_json(await read_body(request, BODY_LIMIT_BYTES))
        if not isinstance(value, dict):
            raise ApiError(400, "the body must be a JSON object")
        return value
