"""The worker side of the API: what the SDK inside a worker calls (rp_job.py, rp_http.py, rp_ping.py).

Shapes and reactions are those of SDK 1.12.0. Two of them shape this file: an answer to job-take without a job makes the
SDK ask again at once, so polls are held open; and there is no acknowledgement of a job, so a hand-out counts only when
the bytes went to a client that was still there.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from llmpod.endpoint.api.http import json_response, read_body
from llmpod.endpoint.api.rate_limit import dump, parse_json, parse_number, split_chunk
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.job import Job, JobState
from llmpod.endpoint.state.store import JobStore
from llmpod.endpoint.state.worker import Worker

DRAINING_HOLD_S = 0.5
"""How long a stopping worker's polls are held: it must not wait for them, and must not spin on them either."""
BATCH_MAX = 10_000


class WorkerApi:
    """The calls of RunPod's SDK in a worker: job-take, job-stop, job-stream, job-done, ping."""

    def __init__(self, store: JobStore, broker: Broker, options: Options) -> None:
        self.store = store
        self.broker = broker
        self.options = options

    # ------------------------------------------------------------------ long polls
    async def take(self, request: web.Request, worker_id: str) -> web.StreamResponse:
        """GET job-take: one job as an object, or 204 when none came within the hold."""
        return await self._take(request, self.broker.polling(worker_id), 1, batch=False)

    async def take_batch(self, request: web.Request, worker_id: str) -> web.StreamResponse:
        """GET job-take-batch?batch_size=N: a list of jobs, or 204."""
        asked = parse_number("batch_size", request.query.get("batch_size", "1"))
        if not 1 <= asked <= BATCH_MAX:
            raise ApiError(400, f"batch_size: must be a number from 1 to {BATCH_MAX}")
        return await self._take(request, self.broker.polling(worker_id), asked, batch=True)

    async def _take(self, request: web.Request, worker: Worker, asked: int, *, batch: bool) -> web.StreamResponse:
        poll = self.broker.open(worker, asked)
        delivered = False
        try:
            if not poll.ready.done():
                hold_s = self.options.take_hold_s if worker.takes_work else DRAINING_HOLD_S
                await asyncio.wait((poll.ready,), timeout=hold_s)
            if not poll.jobs:
                return web.Response(status=204)
            objects = [job.for_worker(self.options.worker_fields) for job in poll.jobs]
            body = b"[" + b",".join(objects) + b"]" if batch else objects[0]
            if pace := self.broker.faults.network_bytes_per_s:
                await asyncio.sleep(len(body) / pace)
            response = web.Response(body=body, content_type="application/json")
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the worker hung up")
            # Written here and not after the return: a failed write must give the jobs back.
            await response.prepare(request)
            await response.write_eof()
            delivered = True
            return response
        finally:
            self.broker.close(poll, delivered=delivered)

    async def stop(self, request: web.Request, worker_id: str) -> web.StreamResponse:
        """GET job-stop: {"jobsToStop": [ids]} as soon as there is one, or 204 when none came within the hold."""
        worker = self.broker.polling(worker_id)
        if not worker.stop_ids:
            await worker.stop_asked.wait(DRAINING_HOLD_S if worker.draining else self.options.stop_hold_s)
        if not worker.stop_ids:
            return web.Response(status=204)
        return json_response({"jobsToStop": self.broker.fetch_stops(worker)})

    # ------------------------------------------------------------------ results
    async def stream_chunk(self, request: web.Request, worker_id: str, job_id: str) -> web.StreamResponse:
        """POST job-stream: one yield, {"output": value}."""
        body = await read_body(request, self.options.runsync_limit_bytes)
        if (job := self.broker.held(worker_id, job_id)) is None:
            return json_response({"status": "ignored"})
        value = self._parse(body)
        if not isinstance(value, dict) or "output" not in value:
            raise ApiError(400, "a stream chunk must be an object with 'output'")
        options = self.options
        job.chunks += split_chunk(dump(value["output"]), options.chunk_limit_bytes, options.chunk_overflow)
        if job.first_chunk_s is None:
            job.first_chunk_s = self.store.clock()
        job.changed.send()
        return json_response({"status": "ok"})

    async def done(self, request: web.Request, worker_id: str, job_id: str) -> web.StreamResponse:
        """POST job-done: the result, or a progress update when it says status IN_PROGRESS.

        A body that is too large or unreadable is answered 400 and ends the job (bad_result_outcome): an over-sized
        image result has been seen to come back as COMPLETED with no output key.
        """
        job = self.broker.held(worker_id, job_id)
        limit_bytes = self.options.runsync_limit_bytes if job is None or job.sync else self.options.run_limit_bytes
        try:
            value = self._parse(await read_body(request, limit_bytes))
            if not isinstance(value, dict):
                raise ApiError(400, "a result must be a JSON object")
            output = dump(value["output"]) if "output" in value else None
            error = error_text(value.get("error"))
        except ApiError as unreadable:
            if (job := self.broker.held(worker_id, job_id)) is not None:
                failed = self.options.bad_result_outcome == "FAILED"
                outcome = JobState(self.options.bad_result_outcome)
                self.store.finish(job, outcome, "done", error=unreadable.message if failed else None)
            raise
        # The body took time to arrive: the job may have ended or been lost meanwhile.
        job = self.broker.held(worker_id, job_id)
        if value.get("status") == JobState.IN_PROGRESS.value:
            self._progress(job_id, job, output)
        elif job is not None:
            self.store.finish(job, JobState.FAILED if error else JobState.COMPLETED, "done", output=output, error=error)
        if value.get("stopPod") is True and (worker := self.broker.workers.get(worker_id)) is not None:
            self.broker.recycle(worker, "asked to be stopped (stopPod)")
        return json_response({"status": "ok" if job is not None else "ignored"})

    def _parse(self, body: bytes) -> Any:
        return parse_json(body, nan_is_null=self.options.nan_bodies == "null")

    def _progress(self, job_id: str, job: Job | None, output: bytes | None) -> None:
        if job is not None:
            job.output = output
        elif self.options.late_progress == "overwrite" and (late := self.store.jobs.get(job_id)) is not None:
            late.late_progress = output

    # ------------------------------------------------------------------ heartbeat
    async def ping(self, request: web.Request, worker_id: str) -> web.StreamResponse:
        """GET ping?job_id=a,b: alive, and these are the jobs I hold; or status=unhealthy&check=...&reason=..."""
        query = request.query
        reason = ": ".join(query[key] for key in ("check", "reason") if key in query)
        from_sdk = "runpod_version" in query
        self.broker.ping(worker_id, query.get("job_id", ""), query.get("status"), reason, from_sdk=from_sdk)
        return json_response({"status": "ok"})


def error_text(error: object) -> str | None:
    """A result's `error` as the status object shows it, always text; None for what is no error to the SDK either."""
    if not error:
        return None
    return error if isinstance(error, str) else dump(error).decode()
