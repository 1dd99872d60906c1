"""A RunPod server that does exactly what a test wrote down, with times known in advance.

It is no emulator: nothing is decided here. Every job has its script (how long it waits, how long it runs, how it ends),
so that a test can compare what the load tester says with what is true.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

OUTPUT = {
    "choices": [{"index": 0, "text": "an answer", "finish_reason": "stop"}],
    "usage": {"input": 7, "output": 50, "total": 57},
}


@dataclass
class JobScript:
    """One job. `chunks` are (seconds after start, output) pairs for /stream and, as text, for the OpenAI route."""

    delay_s: float = 0.0
    exec_s: float = 0.01
    status: str = "COMPLETED"
    output: Any = field(default_factory=lambda: OUTPUT)
    error: Any = None
    worker: str | None = "worker-a"
    retries: int | None = None
    chunks: list[tuple[float, Any]] = field(default_factory=list)


@dataclass
class Script:
    """The server. `refuse(op, number)` answers a submit with a status (and headers, body) instead of taking it.

    `workers`: jobs wait for one of so many workers, each with `dispatch_s` before and `after_s` behind every execution;
    None: no queue, each job just takes its script's time. `stall`: (from, to) seconds since start in which nothing is
    answered.
    """

    job: Callable[[int], JobScript] = lambda _: JobScript()
    refuse: Callable[[str, int], Any] = lambda _op, _number: None
    long_poll: bool = True
    keep_s: float = 1800.0
    workers: int | None = None
    dispatch_s: float = 0.0
    after_s: float = 0.0
    stall: tuple[float, float] | None = None
    health: Callable[[float], Any] | None = None
    runsync_wait_s: float | None = None
    tell_times: bool = True
    sse: Callable[[int], list[tuple[float, bytes]]] | None = None
    openai_json: Any = None


class ScriptedRunPod:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.submitted: list[dict[str, Any]] = []
        self.calls: list[tuple[str, float]] = []
        self.taken_s: list[float] = []  # when each job was taken, in order
        self.cancelled: list[str] = []
        self.authorization: set[str | None] = set()
        self.purged = 0
        self.url = ""
        self._jobs: dict[str, dict[str, Any]] = {}
        self._free = [0.0] * (script.workers or 0)
        self._runner: web.AppRunner | None = None

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._zero

    async def start(self) -> "ScriptedRunPod":
        app = web.Application()
        for method, path, handler in (
            ("POST", "/run", self._run),
            ("POST", "/runsync", self._runsync),
            ("GET", "/status/{id}", self._status),
            ("GET", "/status-sync/{id}", self._status_sync),
            ("GET", "/stream/{id}", self._stream),
            ("POST", "/cancel/{id}", self._cancel),
            ("POST", "/purge-queue", self._purge),
            ("GET", "/health", self._health),
            ("POST", "/openai/v1/chat/completions", self._openai),
        ):
            app.router.add_route(method, "/v2/scripted" + path, handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/v2/scripted"
        self._zero = asyncio.get_running_loop().time()
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # -- the jobs --

    def _take(self, body: dict[str, Any]) -> dict[str, Any]:
        number = len(self.submitted)
        self.submitted.append(body)
        plan = self.script.job(number)
        now = self.now
        self.taken_s.append(now)
        if self.script.workers is None:
            start = now + plan.delay_s
            worker = plan.worker
        else:
            free = min(range(len(self._free)), key=self._free.__getitem__)
            start = max(now, self._free[free]) + self.script.dispatch_s + plan.delay_s
            self._free[free] = start + plan.exec_s + self.script.after_s
            worker = f"worker-{free}"
        job = {
            "id": f"job-{number}", "number": number, "plan": replace(plan, worker=worker), "sent": now, "start": start,
            "end": start + plan.exec_s, "cancelled": False, "drained": 0,
        }  # fmt: skip
        self._jobs[job["id"]] = job
        return job

    def _view(self, job: dict[str, Any]) -> dict[str, Any]:
        plan: JobScript = job["plan"]
        now = self.now
        body: dict[str, Any] = {"id": job["id"]}
        if job["cancelled"]:
            return {**body, "status": "CANCELLED"}
        if now < job["end"]:
            return {**body, "status": "IN_QUEUE" if now < job["start"] else "IN_PROGRESS"}
        body["status"] = plan.status
        if self.script.tell_times:
            body["delayTime"] = round((job["start"] - job["sent"]) * 1000)
            body["executionTime"] = round(plan.exec_s * 1000)
        if plan.worker:
            body["workerId"] = plan.worker
        if plan.retries is not None:
            body["retries"] = plan.retries
        if plan.output is not None:
            body["output"] = plan.output
        if plan.error is not None:
            body["error"] = plan.error
        return body

    async def _gate(self, op: str, request: web.Request) -> web.Response | None:
        """Notes the call; keeps it waiting through a stall; refuses it when the script says so."""
        self.calls.append((op, self.now))
        self.authorization.add(request.headers.get("Authorization"))
        stall = self.script.stall
        if stall and stall[0] <= self.now < stall[1]:
            await asyncio.sleep(stall[1] - self.now)
        refusal = self.script.refuse(op, sum(1 for name, _ in self.calls if name == op) - 1)
        if refusal is None:
            return None
        status, text, headers = (refusal, "", {}) if isinstance(refusal, int) else refusal
        kind = "application/json" if text.startswith("{") else "text/html"
        return web.Response(status=status, text=text, headers=headers, content_type=kind)

    # -- the API --

    async def _run(self, request: web.Request) -> web.Response:
        if (refusal := await self._gate("run", request)) is not None:
            return refusal
        job = self._take(await request.json())
        return web.json_response({"id": job["id"], "status": "IN_QUEUE"})

    async def _runsync(self, request: web.Request) -> web.Response:
        if (refusal := await self._gate("runsync", request)) is not None:
            return refusal
        wait = self.script.runsync_wait_s
        if wait is None:
            wait = int(request.query.get("wait", 90_000)) / 1000
        job = self._take(await request.json())
        await asyncio.sleep(max(0.0, min(wait, job["end"] - self.now)))
        if self.now < job["end"] and job["end"] - self.now < 0.002:
            await asyncio.sleep(0.002)
        return web.json_response(self._view(job))

    def _find(self, request: web.Request) -> dict[str, Any] | None:
        job = self._jobs.get(request.match_info["id"])
        return None if job is None or self.now > job["end"] + self.script.keep_s else job

    async def _status(self, request: web.Request) -> web.Response:
        if (refusal := await self._gate("status", request)) is not None:
            return refusal
        job = self._find(request)
        return web.json_response(self._view(job)) if job else web.json_response({"error": "job not found"}, status=404)

    async def _status_sync(self, request: web.Request) -> web.Response:
        if not self.script.long_poll:
            return web.Response(status=404, text="404 page not found")
        if (refusal := await self._gate("status-sync", request)) is not None:
            return refusal
        job = self._find(request)
        if job is None:
            return web.json_response({"error": "job not found"}, status=404)
        wait = int(request.query.get("wait", 90_000)) / 1000
        until = self.now + wait
        while self.now < min(until, job["end"]) and not job["cancelled"]:
            await asyncio.sleep(min(0.05, max(0.001, min(until, job["end"]) - self.now)))
        return web.json_response(self._view(job))

    async def _stream(self, request: web.Request) -> web.Response:
        if (refusal := await self._gate("stream", request)) is not None:
            return refusal
        job = self._find(request)
        if job is None:
            return web.json_response({"error": "job not found"}, status=404)
        chunks = [out for at, out in job["plan"].chunks if job["start"] + at <= self.now]
        fresh, job["drained"] = chunks[job["drained"] :], len(chunks)
        return web.json_response({"status": self._view(job)["status"], "stream": [{"output": out} for out in fresh]})

    async def _cancel(self, request: web.Request) -> web.Response:
        if (refusal := await self._gate("cancel", request)) is not None:
            return refusal
        job = self._jobs.get(request.match_info["id"])
        if job is None:
            return web.json_response({"error": "job not found"}, status=404)
        job["cancelled"] = True
        self.cancelled.append(job["id"])
        return web.json_response({"id": job["id"], "status": "CANCELLED"})

    async def _purge(self, request: web.Request) -> web.Response:
        self.purged += 1
        return web.json_response({"removed": 0, "status": "completed"})

    async def _health(self, request: web.Request) -> web.Response:
        if (refusal := await self._gate("health", request)) is not None:
            return refusal
        if self.script.health is not None:
            return web.json_response(self.script.health(self.now))
        live = [job for job in self._jobs.values() if self.now < job["end"] and not job["cancelled"]]
        running = sum(1 for job in live if job["start"] <= self.now)
        workers = self.script.workers or 1
        busy = min(workers, running)
        return web.json_response(
            {
                "jobs": {
                    "completed": 0,
                    "failed": 0,
                    "inProgress": running,
                    "inQueue": len(live) - running,
                    "retried": 0,
                },
                "workers": {
                    "idle": workers - busy,
                    "running": busy,
                    "initializing": 0,
                    "ready": workers,
                    "throttled": 0,
                },
            }
        )

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        if (refusal := await self._gate("openai", request)) is not None:
            return refusal
        number = len(self.submitted)
        self.submitted.append(await request.json())
        if self.script.openai_json is not None:
            return web.json_response(self.script.openai_json)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = self.script.sse(number) if self.script.sse else sse_answer(["an ", "answer"])
        began = self.now
        for at, piece in pieces:
            await asyncio.sleep(max(0.0, began + at - self.now))
            await response.write(piece)
        return response


def sse_answer(
    words: list[str], gap_s: float = 0.0, first_s: float = 0.0, *, done: bool = True
) -> list[tuple[float, bytes]]:
    """An OpenAI chat stream: a token per word, then the finish reason, usage and [DONE]."""

    def event(body: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(body).encode() + b"\n\n"

    out = [
        (first_s + number * gap_s, event({"choices": [{"index": 0, "delta": {"content": word}}]}))
        for number, word in enumerate(words)
    ]
    end = out[-1][0] if out else first_s
    if done:
        out.append((end, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})))
        out.append((end, event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(words)}})))
        out.append((end, b"data: [DONE]\n\n"))
    return out


@contextlib.asynccontextmanager
async def scripted(script: Script | None = None) -> AsyncIterator[ScriptedRunPod]:
    server = await ScriptedRunPod(script or Script()).start()
    try:
        yield server
    finally:
        await server.stop()
