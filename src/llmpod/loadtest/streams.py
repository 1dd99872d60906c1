"""One job whose answer is read while it grows: RunPod's GET /stream, or the OpenAI route's server-sent events."""

import asyncio
import json
from array import array
from statistics import median
from time import perf_counter
from typing import Any

from llmpod.loadtest import answers
from llmpod.loadtest.answers import Answer, read_output
from llmpod.loadtest.classify import TERMINAL, error_text, is_empty, output_error, submit_class, terminal_class
from llmpod.loadtest.client import CallError, Reply
from llmpod.loadtest.jobs import BAD_POLLS_IN_A_ROW, HELD_MS, give_up, submit, take_timings
from llmpod.loadtest.records import Job
from llmpod.loadtest.rig import Rig, describe
from llmpod.loadtest.sse import SseParser


class _Growing:
    """Collects an answer piece by piece, with the times that matter."""

    def __init__(self, rig: Rig, job: Job) -> None:
        self.parts: list[Answer] = []
        self.error: str | None = None
        self.finished = False
        self._rig, self._job = rig, job
        self._gaps: list[float] = []

    def take(self, output: Any, at_s: float) -> None:
        """One chunk. A chunk without text (usage, a role) is no token and moves no token time."""
        self.error = self.error or output_error(output)
        answer = read_output(output)
        self.parts.append(answer)
        self.finished = self.finished or answer.finish_reason is not None
        if not answer.text and (isinstance(output, dict) or is_empty(output)):
            return
        at_ms = self._rig.clock.ms(at_s)
        self._job.chunks += 1
        if self._job.first_chunk_ms is None:
            self._job.first_chunk_ms = at_ms
        elif self._job.last_token_ms is not None:
            self._gaps.append(at_ms - self._job.last_token_ms)
        self._job.last_token_ms = at_ms

    def close(self) -> None:
        answers.note(self._job, answers.joined(self.parts))
        if self._gaps:
            self._job.gap_p50_ms, self._job.gap_max_ms = median(self._gaps), max(self._gaps)
            self._job.gaps = array("f", self._gaps)


async def stream(rig: Rig, job: Job, body: dict[str, Any]) -> None:
    """POST /run, then GET /stream until the state is final; a last GET /status brings RunPod's own times.

    The first chunk is known only to have come between two GETs; both ends are recorded. Total ends with the last
    chunk: the final
    state may be reported much later, when the caller has long had the answer.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + rig.options.timeout_s
    accepted = await submit(rig, job, "run", "/run", body, deadline_s, quick=True)
    if accepted is None:
        return
    rig.accepted(job, str(accepted.body["id"]), rig.clock.ms(accepted.received_s))
    growing = _Growing(rig, job)
    bad, before_s = 0, accepted.sent_s
    while True:
        left = deadline_s - loop.time()
        if left <= 0:
            growing.close()
            await give_up(rig, job)
            return
        job.polls += 1
        reply: Reply | None = None
        try:
            reply = await rig.client.call("stream", "GET", f"/stream/{job.job_id}", timeout_s=min(left, 100))
            problem = describe(reply)
        except CallError as error:
            problem = error.detail
        if reply is None or reply.job_status is None:
            bad += 1
            gone = reply is not None and reply.status == 404
            if gone or bad > BAD_POLLS_IN_A_ROW:
                growing.close()
                _end(rig, job, "result_expired" if gone else "poll_failed", problem)
                return
            await asyncio.sleep(min(0.25 * 2**bad, left))
            continue
        bad = 0
        had = job.chunks
        _take_chunks(growing, reply)
        if job.first_chunk_ms is not None and job.first_chunk_after_ms is None:
            job.first_chunk_after_ms = rig.clock.ms(before_s)
        if job.chunks == had:
            job.empty_polls += 1
        before_s = reply.sent_s
        status = reply.job_status or ""
        job.see(status, rig.clock.ms(reply.received_s))
        if status in TERMINAL:
            growing.close()
            await _close(rig, job, growing, reply)
            return
        if job.chunks == had and reply.took_ms < HELD_MS:
            # The service does not hold the GET. Ask on, but all clients together within the limit of the operation.
            await asyncio.sleep(min(left, rig.options.poll_s or max(0.05, len(rig.outstanding) / 150)))


def _take_chunks(growing: _Growing, reply: Reply) -> None:
    chunks = reply.body.get("stream")
    for chunk in chunks if isinstance(chunks, list) else []:
        growing.take(chunk.get("output") if isinstance(chunk, dict) and "output" in chunk else chunk, reply.received_s)


async def _close(rig: Rig, job: Job, growing: _Growing, last: Reply) -> None:
    job.done_ms = rig.clock.ms(last.received_s)
    sent = job.sent_ms or 0.0
    job.total_ms = (job.last_token_ms if job.last_token_ms is not None else job.done_ms) - sent
    status, error = str(last.job_status), last.body.get("error")
    try:
        reply = await rig.client.call("status", "GET", f"/status/{job.job_id}", timeout_s=10, quick=True)
    except CallError:
        reply = None
    if reply is not None and reply.status < 300 and isinstance(reply.body, dict):
        take_timings(job, reply.body)
        error = error or reply.body.get("error")
    whole = reply.body.get("output") if reply is not None and isinstance(reply.body, dict) else None
    if not job.chunks and not is_empty(whole):
        job.warn("not_streamed")
        answers.note(job, read_output(whole))
    kind, detail = terminal_class(status, job.chunks or whole, error)
    if status == "COMPLETED" and growing.error:
        kind, detail = "output_error", growing.error
    job.ok, job.error_class, job.error = kind is None, kind, detail
    rig.settled(job)


async def openai(rig: Rig, job: Job, body: dict[str, Any]) -> None:
    """POST /openai/v1/…: SSE when the service streams, one JSON object when it does not.

    The route tells neither queue nor execution time, and no job id: the queue is inside TTFT, and closing the
    connection is the only way to cancel.
    """
    growing = _Growing(rig, job)
    try:
        async with rig.client.open_stream(rig.options.openai_path, body, rig.options.timeout_s) as (response, sent_s):
            rig.sent(job, sent_s)
            job.http_status = response.status
            job.accepted_ms = rig.clock.now_ms()
            kind = response.headers.get("Content-Type", "")
            if response.status >= 300 or "text/event-stream" not in kind:
                raw = await response.read()
                _whole(rig, job, growing, rig.client.clean(raw.decode("utf-8", "replace")), sent_s)
                return
            parser, done = SseParser(), False
            async for chunk in response.content.iter_any():
                at_s = perf_counter()
                for data in parser.feed(chunk):
                    if data.strip() == "[DONE]":
                        done = True
                        continue
                    _event(rig, growing, data, at_s)
            growing.close()
            whole = done or (growing.finished and not parser.pending)
            if growing.error:
                _end(rig, job, "output_error", growing.error)
            elif not whole:
                _end(rig, job, "stream_broken", "the events ended without [DONE] and without a finish reason")
            elif job.chunks == 0:
                _end(rig, job, "empty_output", "a stream without a token")
            else:
                _end(rig, job, None, None)
    except CallError as error:
        rig.sent(job, error.sent_s)
        growing.close()
        started = job.first_chunk_ms is not None
        _end(
            rig, job, "stream_broken" if started and error.error_class == "connect" else error.error_class, error.detail
        )


def _event(rig: Rig, growing: _Growing, data: str, at_s: float) -> None:
    try:
        event = json.loads(data)
    except ValueError:
        growing.error = growing.error or f"an event that is not JSON: {rig.client.clean(data)[:100]}"
        return
    if isinstance(event, dict) and (event.get("error") or event.get("object") == "error"):
        growing.error = growing.error or error_text(rig.client.clean(json.dumps(event.get("error") or event)))
        return
    growing.take(event, at_s)


def _whole(rig: Rig, job: Job, growing: _Growing, text: str, sent_s: float) -> None:
    """A reply in one piece: an error, or an answer that was not streamed (then there is no TTFT, rather than a false
    one)."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    status = job.http_status or 0
    reply = Reply(status, body, "" if body is not None else " ".join(text.split())[:200], sent_s, perf_counter())
    if status >= 300:
        _end(rig, job, submit_class(status), describe(reply))
        return
    if not isinstance(body, dict):
        _end(rig, job, "bad_reply", describe(reply))
        return
    if body.get("error") or body.get("object") == "error" or ("message" in body and "choices" not in body):
        _end(rig, job, "output_error", error_text(body.get("error") or body))
        return
    if "choices" not in body:
        _end(rig, job, "bad_reply", f"no choices in the reply, only {', '.join(list(body)[:5])}")
        return
    answers.note(job, read_output(body))
    empty = is_empty(body) or not read_output(body).text
    _end(rig, job, "empty_output" if empty else None, "an answer without text" if empty else None)


def _end(rig: Rig, job: Job, error_class: str | None, detail: str | None) -> None:
    job.done_ms = rig.clock.now_ms()
    job.total_ms = job.done_ms - (job.sent_ms if job.sent_ms is not None else job.done_ms)
    job.ok, job.error_class, job.error = error_class is None, error_class, detail
    rig.settled(job)
