"""An engine that does as it is told, and a job loop around it against a local endpoint, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from runpod.serverless.modules import rp_http, rp_job
from runpod.serverless.modules.worker_state import JobsProgress

from llmpod.endpoint import Job, JobState, LocalEndpoint, Options
from llmpod.worker.engine.frame import Frame
from llmpod.worker.engine.start.report import Started
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits, metering
from llmpod.worker.jobs.engine_output import Delta, Step, Timings, Usage
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.queue.loop import EngineJobScaler, EventJobScaler
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events

Json = dict[str, Any]
WORKER_ID = "scripted-1"
ENDED = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT)


class ScriptedEngine:
    """The interface of Engine. Tokens come at a pace, or not at all; a prompt can ask for trouble.

    Prompts: "size N": one token of N characters. "fail": the engine fails at this job. "bug": an unforeseen exception.
    """

    def __init__(self, *, tokens_per_s: float = 1000, prefill_s: float = 0.0, max_num_seqs: int = 64) -> None:
        self.sampling_names = frozenset({"temperature", "n"})
        self.model_name = "scripted"
        self.frame = Frame()
        self.generates = True
        self.traces = False
        self.max_model_len, self.context = 100_000, limits.Context()
        self.max_num_seqs = max_num_seqs
        self.kv_cache_tokens: int | None = None
        self.tokens_per_s = tokens_per_s
        self.prefill_s = prefill_s
        self.hung = False
        self.last_step = time.monotonic()
        self.requests: set[str] = set()
        self.most_requests = 0
        self.running = True
        self.started = Started(
            time.monotonic(), {"generate": True}, {"generate": {"ok": True, "ms": 1.0}}, {"load": 2.0}, ()
        )
        self._death: asyncio.Event = asyncio.Event()

    @property
    def dead(self) -> bool:
        return self._death.is_set()

    @property
    def unfinished(self) -> int:
        return len(self.requests)

    async def respond(self) -> None:
        while self.hung:
            await self._pass(0.001)

    def shutdown(self) -> None:
        self.running = False

    def die(self) -> None:
        self._death.set()

    async def render(self, request: NativeRequest) -> list[Any]:
        meter = metering.current_meter.get()
        pending = meter.judge("\n".join(request.texts)) if meter is not None and meter.judge is not None else None
        if pending is not None:
            await pending()
        return [request.texts[0], *range(9)]

    def sampling(self, given: Json, max_tokens: int, *, stream: bool) -> Json:
        return dict(given) | {"max_tokens": max_tokens, "stream": stream}

    async def constrain(self, params: Json) -> None:
        pass

    async def choose(self, turns: Sequence[tuple[str, str]], choices: Sequence[str], request_id: str) -> str:
        return choices[-1]

    async def generate(self, prompt_ids: list[Any], params: Json, request_id: str) -> AsyncGenerator[Step, None]:
        assert request_id not in self.requests
        self.requests.add(request_id)
        self.most_requests = max(self.most_requests, len(self.requests))
        try:
            words = prompt_ids[0].split()
            if words[0] == "fail":
                raise JobError(Code.GENERATION_FAILED, "The engine failed to process this job.")
            if words[0] == "bug":
                raise RuntimeError("nobody foresaw this")
            total = 1 if words[0] == "size" else params["max_tokens"]
            await self._pass(self.prefill_s)
            began, made = time.monotonic(), 0
            while made < total:
                due = min(total, 1 + int((time.monotonic() - began) * self.tokens_per_s))
                if self.hung or due <= made or (due < total and not params["stream"]):
                    await self._pass(0.001 if params["stream"] else max(0.001, (total - due) / self.tokens_per_s))
                    continue
                text = "x" * int(words[1]) if words[0] == "size" else "".join(f"w{i} " for i in range(made, due))
                made = due
                self.last_step = time.monotonic()
                done = made == total
                delta = Delta(0, text, "length" if done else None)
                if (meter := metering.current_meter.get()) is not None:
                    meter.generated[request_id] = {0: made}
                yield Step([delta], Usage(len(prompt_ids), made, None), done, Timings(0, 0, 0) if done else None)
        finally:
            self.requests.discard(request_id)

    async def _pass(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._death.wait()
        if self.dead:
            raise JobError(Code.ENGINE_DEAD, "The engine died while it worked on this job.")


class ScriptedStart:
    """The interface of WorkerStart, for a worker that is there already."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.settings, self.emit = worker, worker.settings, worker.emit

    async def run(self) -> Worker:
        return self.worker


def text_of(tokens: int) -> str:
    return "".join(f"w{i} " for i in range(tokens))


class Serving:
    """A running job loop and the endpoint it serves."""

    def __init__(self, endpoint: LocalEndpoint, scaler: Any, task: asyncio.Task[int], events: Events) -> None:
        self.endpoint = endpoint
        self.scaler = scaler
        self.task = task
        self.events = events
        self.worker: Worker = scaler.worker_start.worker
        self.engine: Any = self.worker.engine
        self.session = aiohttp.ClientSession()

    async def submit(self, prompt: str = "hello", *, sync: bool = False, **job_input: Any) -> str:
        """Queue a job; its id."""
        job_input = {"prompt": prompt} | job_input
        job_input.setdefault("sampling_params", {"max_tokens": 64})
        return await self.submit_input(job_input, sync=sync)

    async def submit_input(self, job_input: Json, *, sync: bool = False) -> str:
        """Queue a job with this input; its id."""
        url = f"{self.endpoint.url}/{'runsync?wait=1000' if sync else 'run'}"
        async with self.session.post(url, json={"input": job_input}) as response:
            assert response.status == 200, await response.text()
            job_id: str = (await response.json())["id"]
            return job_id

    async def cancel(self, job_id: str) -> None:
        async with self.session.post(f"{self.endpoint.url}/cancel/{job_id}") as response:
            assert response.status == 200

    async def ended(self, job_id: str, timeout_s: float = 20.0) -> Job:
        await until(lambda: self.endpoint.job(job_id).state in ENDED, timeout_s)
        return self.endpoint.job(job_id)

    async def run(self, prompt: str = "hello", **job_input: Any) -> Job:
        return await self.ended(await self.submit(prompt, **job_input))

    def at_rest(self) -> bool:
        """Nothing is held anywhere."""
        slots = self.worker.slots
        held = (self.engine.unfinished, slots.in_use, slots.waiting, len(self.scaler.jobs_tasks), len(JobsProgress()))
        return held == (0, 0, 0, 0, 0)

    async def stop(self) -> None:
        self.scaler.kill_worker()
        await asyncio.wait_for(asyncio.shield(self.task), 30)


async def exit_status(scaler: Any) -> int:
    """Runs the loop; what the process would exit with."""
    try:
        await scaler.run()
    except SystemExit as ending:
        return int(str(ending.code))
    return 0


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait until it has ended, however it does."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # marks it as retrieved


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


class LoopClock:
    """Seconds without those in which the machine gave this thread no processor: what a promise in milliseconds means.

    Time in which the thread computes counts, and so does time in which it waits for something.
    """

    TICK_S = 0.001

    def __init__(self) -> None:
        self.lost_s = 0.0

    def now(self) -> float:
        return time.monotonic() - self.lost_s

    async def __aenter__(self) -> LoopClock:
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            wall, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(self.TICK_S)
            over_s = time.monotonic() - wall - self.TICK_S - (time.thread_time() - worked)
            if over_s > 2 * self.TICK_S:
                self.lost_s += over_s


def output(job: Job) -> Any:
    assert job.output is not None, job.error
    return json.loads(job.output)


def error(job: Job) -> Json:
    """The job's error, which must be a JSON object in a string."""
    assert job.state is JobState.FAILED, job.state
    value: Json = json.loads(str(job.error))
    assert value["job_id"] == job.id
    return value


def streamed_text(job: Job) -> str:
    chunks = [json.loads(chunk) for chunk in job.chunks]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


@asynccontextmanager
async def serving(
    patch: pytest.MonkeyPatch,
    engine: Any,
    *,
    base: type[EngineJobScaler] = EventJobScaler,
    config: Json | None = None,
    options: Json | None = None,
    **settings: Any,
) -> AsyncIterator[Serving]:
    """The job loop, in this event loop. Leaving stops it and checks that nothing is left."""
    settings = {"max_tokens_min": 1, "max_tokens_max": 0} | settings
    wanted = {"take_hold_s": 2, "stop_hold_s": 2, "dead_after_pings": 0} | (options or {})
    events = Events()
    async with LocalEndpoint(Options(port=0, fleet=False, journal="", console=False, **wanted)) as endpoint:
        address = endpoint.worker_env(WORKER_ID)
        patch.setenv("RUNPOD_AI_API_KEY", address["RUNPOD_AI_API_KEY"])
        patch.setattr(rp_job, "JOB_GET_URL", address["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", WORKER_ID))
        for name, variable in (("DONE", "OUTPUT"), ("STREAM", "STREAM")):
            url = address[f"RUNPOD_WEBHOOK_POST_{variable}"].replace("$RUNPOD_POD_ID", WORKER_ID)
            patch.setattr(rp_http, f"JOB_{name}_URL", url)
        JobsProgress().clear()
        worker = Worker(Settings(**settings), engine, events.emit)
        scaler: Any = type("Scaler", (base,), {"worker_start": ScriptedStart(worker)})(
            {"handler": Worker.handle, "return_aggregate_stream": worker.settings.return_aggregate_stream}
            | (config or {})
        )
        task = asyncio.create_task(exit_status(scaler))
        served = Serving(endpoint, scaler, task, events)
        try:
            await endpoint.ready()
            yield served
            if not task.done():
                await served.stop()
            assert served.at_rest()
        finally:
            await served.session.close()
            await end(task)
