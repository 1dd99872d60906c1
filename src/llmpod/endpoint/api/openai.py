"""/openai/*: a call becomes a job, and the job's answer becomes the HTTP response.

RunPod documents the shape of the job's input; how worker output becomes a response is inferred from the official
workers and stated at each step below.
"""

from __future__ import annotations

import asyncio

import orjson
from aiohttp import web

from llmpod.endpoint.api.http import hang_up, json_response, read_body, wait_for_end
from llmpod.endpoint.api.rate_limit import dump, parse_json
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.job import Job, JobRequest, JobState
from llmpod.endpoint.state.store import JobStore


class OpenAiApi:
    """/openai/*: each call is a job with `openai_route` and `openai_input`."""

    def __init__(self, store: JobStore, options: Options) -> None:
        self.store = store
        self.options = options

    async def call(self, request: web.Request, route: str) -> web.StreamResponse:
        """One call to /openai/<route>. The client's departure cancels the job; so does the end of the waiting time."""
        job_input: dict[str, object] = {"openai_route": route}
        wants_stream = False
        if request.method == "POST":
            body = await read_body(request, self.options.runsync_limit_bytes)
            value = parse_json(body) if body.strip() else {}  # POST …/responses/{id}/cancel has none
            if not isinstance(value, dict):
                raise ApiError(400, "the body must be a JSON object")
            job_input["openai_input"] = value
            wants_stream = value.get("stream") is True
        job = self.store.submit(JobRequest(input=dump(job_input)), sync=True)
        try:
            if wants_stream:
                return await self._stream(request, job)
            return await self._whole(job)
        except (asyncio.CancelledError, ConnectionResetError):
            job.pinned = False
            if self.options.openai_disconnect_cancels:
                self._cancel(job, "client disconnected")
            raise

    def _cancel(self, job: Job, reason: str) -> None:
        if not job.ended:
            self.store.finish(job, JobState.CANCELLED, reason)

    async def _whole(self, job: Job) -> web.StreamResponse:
        await self._until(job, first_chunk=False)
        if job.state is not JobState.COMPLETED:
            return self._failed(job)
        return self._plain(job)

    async def _stream(self, request: web.Request, job: Job) -> web.StreamResponse:
        """Server-sent events: each chunk is written the moment it arrives, text verbatim."""
        await self._until(job, first_chunk=True)
        if not job.chunks:
            # Nothing was streamed: a failure can still have its HTTP code, a plain result its JSON.
            return self._failed(job) if job.state is not JobState.COMPLETED else self._plain(job)
        job.pinned = True
        response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)
        while True:
            chunks, job.chunks = job.chunks, []
            for chunk in chunks:
                await response.write(streamed(chunk, self.options.openai_objects))
            if job.ended and not job.chunks:
                break
            if not job.chunks:
                await job.changed.wait(self.options.openai_wait_s)
        if job.state is not JobState.COMPLETED:
            if self.options.openai_stream_failure == "cut":
                return hang_up(request)
            await response.write(last_words(job, self.options.openai_stream_failure))
        await response.write_eof()
        return response

    async def _until(self, job: Job, *, first_chunk: bool) -> None:
        """Waits for the end of the job, or for its first chunk. Raises ApiError 504 after `openai_wait_s`."""
        if not await wait_for_end(job, self.options.openai_wait_s, or_first_chunk=first_chunk):
            self._cancel(job, "no answer in time")
            raise ApiError(504, f"no answer within {self.options.openai_wait_s:g} s")

    def _plain(self, job: Job) -> web.Response:
        return web.Response(body=unwrap(job, self.options.openai_unwrap), content_type="application/json")

    def _failed(self, job: Job) -> web.Response:
        """A worker's error that names an HTTP status (`status`) has it; what production does is not known."""
        said = failure(job)
        inner = said.get("error")
        status = said.get("status", inner.get("status") if isinstance(inner, dict) else None)
        if isinstance(status, int) and 400 <= status <= 599:
            return json_response(said, status)
        return json_response(said, self.options.failed_openai_status)


def unwrap(job: Job, rule: str) -> bytes:
    """The response body of a job that was not streamed, as JSON text; `rule` is the option openai_unwrap.

    The official workers return [object] (a generator with return_aggregate_stream, or return_as_list), an object, or
    JSON as a string; by the rule `all` each becomes the object. A generator without an aggregate left its answer in the
    chunks.
    """
    value = orjson.loads(job.output) if job.output is not None else None
    if value in (None, []) and job.chunks:
        value = [orjson.loads(chunk) for chunk in job.chunks]
        job.chunks = []
    if rule != "none" and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if rule == "all" and isinstance(value, str):
        return value.encode()
    return orjson.dumps(value)


def streamed(chunk: bytes, objects: str) -> bytes:
    """A yielded value as part of an event stream: text verbatim (it is events already), the rest by openai_objects."""
    if chunk.startswith(b'"'):
        text: str = orjson.loads(chunk)
        return text.encode()
    return b"data: " + chunk + b"\n\n" if objects == "event" else chunk


def last_words(job: Job, manner: str) -> bytes:
    """What ends the event stream of a job that failed in the middle of it; `manner` is openai_stream_failure."""
    if manner == "end":
        return b""
    return b"data: " + orjson.dumps(failure(job)) + b"\n\n" + (b"data: [DONE]\n\n" if manner == "event-done" else b"")


def failure(job: Job) -> dict[str, object]:
    """An OpenAI error object for a job that did not complete; a worker that wrote one itself is quoted."""
    message = job.error or f"the job is {job.state.value}"
    try:
        told = orjson.loads(message)
    except orjson.JSONDecodeError:
        told = None
    if isinstance(told, dict):
        if isinstance(told.get("error"), dict):
            return told
        if "message" in told:
            return {"error": told}
        message = str(told.get("error_message", message))
    return {"error": {"message": message, "type": "server_error", "param": None, "code": job.state.value}}
