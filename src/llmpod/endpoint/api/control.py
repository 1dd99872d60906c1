"""Control API (/control/*) for the page and for changes while the endpoint runs. Not part of RunPod's API."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpod.endpoint.api.client import summary
from llmpod.endpoint.api.http import bad_request, json_response, read_body
from llmpod.endpoint.api.rate_limit import parse_json
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.faults import Faults
from llmpod.endpoint.fleet.fleet import Fleet
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.job import Job, JobState
from llmpod.endpoint.state.store import JobStore
from llmpod.endpoint.state.worker import Worker

BODY_LIMIT_BYTES = 64 * 1024
JOBS_SHOWN = 50
QUEUED_SHOWN = 10
ENDED_KEPT = 4000
LOG_LINES_SHOWN = 400


class Scale(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    workersMin: int | None = Field(None, ge=0)  # noqa: N815 -- RunPod's name
    workersMax: int | None = Field(None, ge=0)  # noqa: N815 -- RunPod's name


class ControlApi:
    def __init__(self, store: JobStore, broker: Broker, fleet: Fleet | None, options: Options) -> None:
        self.store = store
        self.broker = broker
        self.fleet = fleet
        self.options = options
        self.ended_count = 0
        self.ended: deque[tuple[str, dict[str, object]]] = deque(maxlen=ENDED_KEPT)
        """(job id, what is drawn of it) of those that ended last, oldest first; outputs are not kept alive by it."""
        store.listeners.append(self._on_transition)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """GET state, faults, workers/ID/logs; POST faults, scale, workers/ID/kill|stop|freeze|thaw. Raises ApiError."""
        match request.method, request.path.removeprefix("/control/").split("/"):
            case "GET", ["state"]:
                return json_response(self.state(after=request.query.get("after", "")))
            case "GET", ["faults"]:
                return json_response(self.broker.faults.model_dump())
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

    def _on_transition(self, job: Job, _was: JobState | None, _reason: str) -> None:
        if job.ended:
            self.ended_count += 1
            point: dict[str, object] = {"at": time.time(), "delayTime": job.delay_ms, "executionTime": job.execution_ms}
            self.ended.append((job.id, point))

    def state(self, after: str = "") -> dict[str, object]:
        """Everything the page draws, without inputs and outputs. `ended` has the jobs that ended after that number."""
        now = self.store.clock()
        seen = int(after) if after.isascii() and after.isdigit() and len(after) < 16 else 0
        fresh = self.ended_count - seen if seen <= self.ended_count else self.ended_count
        return {
            "endpoint": self.options.endpoint_id,
            "time": time.time(),
            "queued": len(self.store.queue),
            "running": len(self.store.running),
            "kept": len(self.store.jobs),
            "totals": dict(self.store.totals),
            "command": self.options.command_line if self.fleet is not None else None,
            "faults": self.broker.faults.model_dump(),
            "workers": [self._worker_row(worker, now) for worker in self.broker.workers.values()],
            "jobs": [summary(job) for job in self._jobs()],
            "ended_count": self.ended_count,
            "ended": [point for _, point in islice(self.ended, max(0, len(self.ended) - fresh), None)],
        }

    def _jobs(self) -> list[Job]:
        """The jobs to list: those that run, then those that ended, both newest first, then the next in the queue."""
        running = list(islice(reversed(self.store.running.values()), JOBS_SHOWN - 2 * QUEUED_SHOWN))
        room = JOBS_SHOWN - len(running) - min(len(self.store.queue), QUEUED_SHOWN)
        # A job may be forgotten by now, or run again under its id.
        known = dict.fromkeys(job_id for job_id, _ in reversed(self.ended))
        ended = list(islice((job for name in known if (job := self.store.jobs.get(name)) and job.ended), room))
        queued = islice(self.store.queue.values(), JOBS_SHOWN - len(running) - len(ended))
        return [*running, *ended, *queued]

    def _worker_row(self, worker: Worker, now: float) -> dict[str, object]:
        process = self.fleet.processes.get(worker.id) if self.fleet is not None else None
        return {
            "id": worker.id,
            "state": worker.state.value,
            "ending": worker.ending,
            "owned": worker.owned,
            "pid": process.pid if process is not None else None,
            "age_s": round(now - worker.since_s, 1),
            "jobs": len(worker.jobs),
            "done": worker.jobs_done,
            "ping_age_s": None if worker.last_ping_s is None else round(now - worker.last_ping_s, 1),
            "note": worker.dead or worker.unhealthy,
        }

    def set_faults(self, changes: dict[str, object]) -> Faults:
        """Changes the given knobs and leaves the others. Raises ApiError 400 and changes nothing when one is wrong."""
        try:
            self.broker.faults = Faults.model_validate(self.broker.faults.model_dump() | changes)
        except ValidationError as error:
            raise bad_request(error) from None
        if changes.get("seed") is not None:
            self.broker.random.seed(self.broker.faults.seed)
        return self.broker.faults

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

    def act(self, worker: Worker, action: str) -> None:
        """Kills, stops, freezes or thaws a worker's processes. Raises ApiError 400 when we have none."""
        fleet = self.fleet
        if fleet is None or worker.id not in fleet.processes:
            raise ApiError(400, f"worker {worker.id} has no process of this endpoint")
        actions: dict[str, Callable[[], object]] = {
            "kill": lambda: fleet.kill(worker.id),
            "stop": lambda: fleet.retire(worker, "stopped on request"),
            "freeze": lambda: fleet.freeze(worker.id, frozen=True),
            "thaw": lambda: fleet.freeze(worker.id, frozen=False),
        }
        actions[action]()

    def _worker(self, worker_id: str) -> Worker:
        worker = self.broker.workers.get(worker_id)
        if worker is None:
            raise ApiError(404, f"no worker {worker_id}")
        return worker

    async def _object(self, request: web.Request) -> dict[str, object]:
        value = parse_json(await read_body(request, BODY_LIMIT_BYTES))
        if not isinstance(value, dict):
            raise ApiError(400, "the body must be a JSON object")
        return value
