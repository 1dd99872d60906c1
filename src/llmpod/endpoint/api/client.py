"""Client API of one endpoint: one method per operation; router.py has the paths."""

from __future__ import annotations

from aiohttp import web

from llmpod.endpoint.api.http import json_response, read_body, wait_for_end
from llmpod.endpoint.api.rate_limit import parse_number, parse_request, parse_wait_ms
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.broker import Broker
from llmpod.endpoint.state.job import Job, JobState
from llmpod.endpoint.state.store import JobStore

REQUESTS_LISTED = 100


class ClientApi:
    """RunPod's operations for clients: /run, /runsync, /status, /stream, /cancel, /retry, /purge-queue, /health."""

    def __init__(self, store: JobStore, broker: Broker, options: Options) -> None:
        self.store = store
        self.broker = broker
        self.options = options

    async def run(self, request: web.Request) -> web.StreamResponse:
        """POST /run: queues a job and answers with its id."""
        body = await read_body(request, self.options.run_limit_bytes)
        job = self._submit(body, sync=False)
        return self._queued(job)

    async def runsync(self, request: web.Request) -> web.StreamResponse:
        """POST /runsync: queues a job and answers when it has ended, or when ?wait= is over."""
        wait_ms = parse_wait_ms(request.query.get("wait"), self.options.sync_wait_ms)
        job = self._submit(await read_body(request, self.options.runsync_limit_bytes), sync=True)
        await wait_for_end(job, wait_ms / 1000)
        failed = job.state is JobState.FAILED
        return json_response(self._shown(job), self.options.failed_runsync_status if failed else 200)

    async def status(self, request: web.Request, job_id: str) -> web.StreamResponse:
        """/status/ID: the status object; ?ttl= changes how long the result is kept."""
        job = self._job(job_id)
        if (ttl := request.query.get("ttl")) is not None:
            ttl_ms = parse_number("ttl", ttl)
            if ttl_ms < 0:
                raise ApiError(400, "ttl: must not be negative")
            self.store.keep_result(job, ttl_ms)
        return json_response(self._shown(job))

    async def status_sync(self, request: web.Request, job_id: str) -> web.StreamResponse:
        """/status-sync/ID: the status object, held until the job has ended or ?wait= is over."""
        wait_ms = parse_wait_ms(request.query.get("wait"), self.options.sync_wait_ms)
        job = self._job(job_id)
        await wait_for_end(job, wait_ms / 1000)
        return json_response(self._shown(job))

    async def stream(self, request: web.Request, job_id: str) -> web.StreamResponse:
        """Everything yielded since the last call; waits for news. The final state comes with the last chunks."""
        wait_ms = parse_wait_ms(request.query.get("wait"), self.options.stream_hold_ms)
        job = self._job(job_id)
        if not job.chunks and not job.ended:
            await job.changed.wait(wait_ms / 1000)
        chunks, job.chunks = job.chunks, []
        # Chunks are JSON text already: joining them is all the encoding there is.
        items = b",".join(b'{"output":' + chunk + b"}" for chunk in chunks)
        body = b'{"status":"' + self._name(job.state.value).encode() + b'","stream":[' + items + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def cancel(self, request: web.Request, job_id: str) -> web.StreamResponse:
        """Ends a queued or running job; one that has ended stays as it is, and the answer says how that is."""
        job = self._job(job_id)
        if not job.ended:
            self.store.finish(job, JobState.CANCELLED, "cancelled")
        return json_response({key: value for key, value in self._shown(job).items() if key not in ("output", "error")})

    async def retry(self, request: web.Request, job_id: str) -> web.StreamResponse:
        """POST /retry/ID: runs a FAILED or TIMED_OUT job again under its id."""
        job = self._job(job_id)
        if not self.store.retry(job):
            raise ApiError(
                400, f"job {job_id} is {job.state}: only FAILED and TIMED_OUT jobs run again, within their ttl"
            )
        return self._queued(job)

    async def purge_queue(self, request: web.Request) -> web.StreamResponse:
        """POST /purge-queue: cancels the queued jobs."""
        queued = list(self.store.queue.values())
        for job in queued:
            self.store.finish(job, JobState.CANCELLED, "purged")
        return json_response({"removed": len(queued), "status": "completed"})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """/health: jobs and workers by state."""
        totals = self.store.totals
        jobs = {
            "completed": totals[JobState.COMPLETED.value],
            "failed": totals[JobState.FAILED.value] + totals[JobState.TIMED_OUT.value],
            "inProgress": len(self.store.running),
            "inQueue": len(self.store.queue),
            "retried": totals["retried"],
        }
        return json_response({"jobs": jobs, "workers": self.broker.counts()})

    async def requests(self, request: web.Request) -> web.StreamResponse:
        """The latest jobs, newest first. RunPod documents the route's rate limit only; the shape is ours."""
        listed = [summary(job) | {"status": self._name(job.state.value)} for job in self.store.recent(REQUESTS_LISTED)]
        return json_response(listed if self.options.requests_shape == "list" else {"requests": listed})

    def _name(self, status: str) -> str:
        return self.options.running_name if status == JobState.IN_PROGRESS.value else status

    def _shown(self, job: Job) -> dict[str, object]:
        status = job.status()
        return status | {"status": self._name(status["status"])}

    def _queued(self, job: Job) -> web.Response:
        return json_response({"id": job.id, "status": JobState.IN_QUEUE.value})

    def _submit(self, body: bytes, *, sync: bool) -> Job:
        options = self.options
        parsed = parse_request(body, any_input=options.any_input, bounds=options.policy_bounds)
        return self.store.submit(parsed, sync=sync)

    def _job(self, job_id: str) -> Job:
        job = self.store.jobs.get(job_id)
        if job is None:
            raise ApiError(404, f"no job {job_id}: unknown, or its retention is over")
        return job


def summary(job: Job) -> dict[str, object]:
    """A job without its input and output."""
    return {
        "id": job.id,
        "status": job.state.value,
        "submittedAt": job.submitted_at,
        "delayTime": job.delay_ms,
        "executionTime": job.execution_ms,
        "workerId": job.worker_id,
        "retries": job.retries,
    }
