"""Streaming modes: one job read through GET /stream, or as the answer of one request: the OpenAI route, or HTTP."""

import asyncio
from array import array
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import aiohttp

from llmpod.loadtest.intake import job_path, label
from llmpod.loadtest.model.failures import TERMINAL, error_text, submit_class
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.run import outcomes
from llmpod.loadtest.run.answer import Answer, joined
from llmpod.loadtest.run.client import CallError, Reply, read_whole
from llmpod.loadtest.run.context import RunContext, describe
from llmpod.loadtest.run.outcomes import Verdict
from llmpod.loadtest.run.output import Reading, read_output
from llmpod.loadtest.run.queue_modes import BAD_POLLS_IN_A_ROW, HELD_MS, give_up, refuse, submit, take_timings
from llmpod.loadtest.run.sse import SseParser

# A stream that never ends must not fill the memory or the disk with its gaps.
MOST_GAPS = 100_000
NO_WORKER = ("no workers available", "timed out waiting for worker")
"""Texts with which RunPod's load balancer gives a request up after two minutes; the HTTP code is 400."""
WORKER_HEADER = "X-Runpod-Worker-Id"  # of a load-balancing endpoint's answers


class _Growing:
    """Collects an answer piece by piece, with the times that matter."""

    def __init__(self, context: RunContext, job: Job) -> None:
        self.reading, self.parser = Reading(), SseParser()
        self._context, self._job = context, job
        self._gaps: list[float] = []

    def take(self, piece: Answer, at_s: float) -> None:
        """Times one chunk. A chunk without content (usage, a role) is no token and moves no token time."""
        if not piece.chars and not piece.content:
            return
        at_ms = self._context.clock.ms(at_s)
        self._job.chunks += 1
        if self._job.first_chunk_ms is None:
            self._job.first_chunk_ms = at_ms
        elif self._job.last_token_ms is not None and len(self._gaps) < MOST_GAPS:
            self._gaps.append(at_ms - self._job.last_token_ms)
        self._job.last_token_ms = at_ms

    def close(self) -> Answer:
        if self._gaps:
            self._job.gap_p50_ms, self._job.gap_max_ms = median(self._gaps), max(self._gaps)
            self._job.gaps = array("f", self._gaps)
        return self.reading.close()


async def stream(context: RunContext, job: Job, body: dict[str, Any]) -> None:
    """POST /run, then GET /stream until the state is final; a last GET /status brings RunPod's own times.

    The first chunk is known only to have come between two GETs; both ends are recorded. Total ends with the last chunk:
    the final state may be reported much later, when the caller has long had the answer.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + context.options.timeout
    accepted = await submit(context, job, "run", "/run", body, deadline_s, quick=True)
    if accepted is None:
        return
    context.accepted(job, str(accepted.body["id"]), context.clock.ms(accepted.received_s))
    growing = _Growing(context, job)
    bad, before_s = 0, accepted.sent_s
    while True:
        left = deadline_s - loop.time()
        if left <= 0:
            _note(context, job, growing.close(), Verdict("failed", "client_timeout"))
            await give_up(context, job)
            return
        job.polls += 1
        reply: Reply | None = None
        try:
            reply = await context.client.call("stream", "GET", job_path("stream", job.job_id), timeout_s=min(left, 100))
            problem = describe(reply)
        except CallError as error:
            problem = error.detail
        if reply is None or reply.job_status is None:
            bad += 1
            gone = reply is not None and reply.status == 404
            if gone or bad > BAD_POLLS_IN_A_ROW:
                verdict = Verdict("failed", "result_expired" if gone else "poll_failed", problem)
                _end(context, job, growing.close(), verdict)
                return
            await asyncio.sleep(min(0.25 * 2**bad, left))
            continue
        bad = 0
        had = job.chunks
        _take_chunks(growing, reply)
        if job.first_chunk_ms is not None and job.first_chunk_after_ms is None:
            job.first_chunk_after_ms = context.clock.ms(before_s)
        if job.chunks == had:
            job.empty_polls += 1
        before_s = reply.sent_s
        status = reply.job_status or ""
        job.see(status, context.clock.ms(reply.received_s))
        if status in TERMINAL:
            await _close(context, job, growing.close(), reply)
            return
        if job.chunks == had and reply.took_ms < HELD_MS:
            # The service does not hold the GET. Ask on, but all clients together within the limit of the operation.
            await asyncio.sleep(min(left, context.options.poll_interval or max(0.05, len(context.outstanding) / 150)))


def _take_chunks(growing: _Growing, reply: Reply) -> None:
    chunks = reply.body.get("stream")
    for chunk in chunks if isinstance(chunks, list) else []:
        output = chunk["output"] if isinstance(chunk, dict) and "output" in chunk else chunk
        growing.take(growing.reading.take(output), reply.received_s)


async def _close(context: RunContext, job: Job, answer: Answer, last: Reply) -> None:
    job.done_ms = context.clock.ms(last.received_s)
    sent = job.sent_ms or 0.0
    job.total_ms = (job.last_token_ms if job.last_token_ms is not None else job.done_ms) - sent
    status, error = str(last.job_status), last.body.get("error")
    try:
        reply = await context.client.call("status", "GET", job_path("status", job.job_id), timeout_s=10, quick=True)
    except CallError:
        reply = None
    if reply is not None and reply.status < 300 and isinstance(reply.body, dict):
        take_timings(job, reply.body)
        error = error or reply.body.get("error")
    whole = read_output(reply.body.get("output")) if reply is not None and isinstance(reply.body, dict) else Answer()
    if not job.chunks and whole.content:
        job.warn("not_streamed")
    # What the chunks left out: a worker may send usage, or an error, only with the whole.
    answer = joined(replace(whole, chars=0) if job.chunks else whole, answer)
    _note(context, job, answer, outcomes.judge(answer, status, error))
    context.settled(job)


async def openai(context: RunContext, job: Job, body: dict[str, Any]) -> None:
    """POST /openai/v1/…: SSE when the service streams, one JSON object when it does not.

    The route tells neither queue nor execution time, and no job id: the queue is inside TTFT, and closing the
    connection is the only way to cancel.
    """
    await one_request(context, job, body, Route("openai", context.options.openai_path))


async def http(context: RunContext, job: Job, body: dict[str, Any]) -> None:
    """POST --http-path, straight to a load-balancing endpoint, or to any server with such a route: server-sent events
    where it streams, else one JSON value of any shape.

    There is no queue and no job: the reply is the answer, TTFT and totals are what the client saw, and delay and
    execution time are unknown."""
    await one_request(context, job, body, Route("http", context.options.http_path, any_json=True))


@dataclass(frozen=True, slots=True)
class Route:
    """A route that answers a job in its own reply. `op` is the operation whose rate limit holds. `any_json`: any JSON
    value is an answer, not only those of the known APIs."""

    op: str
    path: str
    any_json: bool = False

    def refusal_class(self, reply: Reply) -> str:
        """The error class of a reply that is no answer; RunPod's 400 for want of a worker blames no request."""
        said = error_text(reply.body.get("error")) if isinstance(reply.body, dict) else None
        return "no_worker" if self.op == "http" and said in NO_WORKER else submit_class(reply.status)


async def one_request(context: RunContext, job: Job, body: dict[str, Any], route: Route) -> None:
    """POST, again while it is refused and --retries allows it; the reply is read as it comes."""
    deadline_s = asyncio.get_running_loop().time() + context.options.timeout
    while await _attempt(context, job, body, route, deadline_s):
        pass


async def _attempt(context: RunContext, job: Job, body: dict[str, Any], route: Route, deadline_s: float) -> bool:
    """One request; True when it was refused and is to be sent again."""
    growing = _Growing(context, job)
    left_s = max(0.5, deadline_s - asyncio.get_running_loop().time())
    try:
        async with context.client.open_stream(
            route.op, route.path, body, left_s, on_send=lambda at_s: context.sent(job, at_s)
        ) as (response, sent_s):
            job.http_status = response.status
            job.accepted_ms = context.clock.now_ms()
            job.worker_id = label(response.headers.get(WORKER_HEADER))
            if response.status >= 300 or "text/event-stream" not in response.headers.get("Content-Type", ""):
                raw = await read_whole(response)
                retry_after = response.headers.get("Retry-After")
                reply = context.client.reply(response.status, raw, sent_s, perf_counter(), retry_after)
                if response.status < 300:
                    _whole(context, job, reply, any_json=route.any_json)
                    return False
            else:
                await _events(context, growing, response)
                _close_stream(context, job, growing)
                return False
        error_class, detail = route.refusal_class(reply), describe(reply)
        if await context.again(job, error_class, detail, reply.retry_after_s, deadline_s):
            return True
        context.answered(job)
        context.end(job)
        refuse(context, job, error_class, detail, reply)
    except CallError as error:
        started = job.first_chunk_ms is not None
        if not started and await context.again(job, error.error_class, error.detail, None, deadline_s):
            return True
        broken = started and error.error_class == "connect"
        verdict = Verdict("failed", "stream_broken" if broken else error.error_class, error.detail)
        _end(context, job, growing.close(), verdict)
    return False


async def _events(context: RunContext, growing: _Growing, response: aiohttp.ClientResponse) -> None:
    parser = growing.parser
    async for chunk in response.content.iter_any():
        at_s = perf_counter()
        for data in parser.feed(chunk):
            growing.take(growing.reading.event(data, context.client.clean), at_s)


def _close_stream(context: RunContext, job: Job, growing: _Growing) -> None:
    answer = growing.close()
    whole = answer.ended or (answer.finish_reason is not None and not growing.parser.pending)
    if answer.error is None and not whole:
        detail = "the events ended without [DONE] and without a finish reason"
        _end(context, job, answer, Verdict("failed", "stream_broken", detail))
    else:
        _end(context, job, answer, outcomes.judge(answer))


def _whole(context: RunContext, job: Job, reply: Reply, *, any_json: bool) -> None:
    """An answer that was not streamed (then there is no TTFT, rather than a false one)."""
    answer = read_output(reply.body)
    if answer.known or answer.error is not None or (any_json and reply.body is not None):
        verdict = outcomes.judge(answer)
    elif isinstance(reply.body, dict) and (reply.body.get("message") or reply.body.get("detail")):
        verdict = outcomes.failed("output_error", reply.body)
    else:
        verdict = Verdict("failed", "bad_reply", describe(reply).replace("no job", "no answer of this API"))
    _end(context, job, answer, verdict)


def _end(context: RunContext, job: Job, answer: Answer, verdict: Verdict) -> None:
    context.answered(job)
    context.end(job)
    _note(context, job, answer, verdict)
    context.settled(job)


def _note(context: RunContext, job: Job, answer: Answer, verdict: Verdict) -> None:
    outcomes.note(job, answer, verdict, expect_blocked=context.options.expect_blocked)
