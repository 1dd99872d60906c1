"""Queue modes: one job by /runsync or /run, submitted, followed to its end and classified."""

import asyncio
from dataclasses import replace
from typing import Any

from llmpod.loadtest import intake
from llmpod.loadtest.intake import count, job_path, label, number
from llmpod.loadtest.model.failures import TERMINAL, submit_class
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.run import outcomes
from llmpod.loadtest.run.client import CallError, Reply
from llmpod.loadtest.run.context import RunContext, describe
from llmpod.loadtest.run.output import read_output
from llmpod.loadtest.run.polling import correct_total

# The longest wait RunPod grants on /runsync and /status-sync, and the shortest.
LONGEST_WAIT_S, SHORTEST_WAIT_S = 300.0, 1.0
# A long poll that came back sooner than this without news did not wait; asking again at once would be a busy loop.
HELD_MS = 25.0
BAD_POLLS_IN_A_ROW = 8


async def runsync(context: RunContext, job: Job, body: dict[str, Any]) -> None:
    """POST /runsync?wait=…: usually one request. When the wait ends first, HTTP 200 brings a job that is not done: it
    is followed."""
    deadline_s = _deadline(context)
    # The wait ends before --timeout does: otherwise the id, and with it the means to cancel, would never arrive.
    wait_s = min(max(min(context.options.wait, context.options.timeout - 1.0), SHORTEST_WAIT_S), LONGEST_WAIT_S)
    path = f"/runsync?wait={int(wait_s * 1000)}"
    reply = await submit(context, job, "runsync", path, body, deadline_s)
    if reply is None:
        return
    at_ms = context.clock.ms(reply.received_s)
    status = reply.job_status
    if status in TERMINAL:
        job.job_id = intake.job_id(reply.body.get("id"))
        finish(context, job, reply, total_ms=at_ms - _sent(job))
        return
    job.warn("wait_expired")
    context.accepted(job, str(reply.body["id"]), at_ms)
    await follow(context, job, reply, deadline_s)


async def run(context: RunContext, job: Job, body: dict[str, Any]) -> None:
    """POST /run, then the status until it is final."""
    deadline_s = _deadline(context)
    reply = await submit(context, job, "run", "/run", body, deadline_s, quick=True)
    if reply is None:
        return
    at_ms = context.clock.ms(reply.received_s)
    context.accepted(job, str(reply.body["id"]), at_ms)
    if reply.job_status in TERMINAL:
        finish(context, job, reply, total_ms=at_ms - _sent(job))
        return
    await follow(context, job, reply, deadline_s)


async def submit(
    context: RunContext, job: Job, op: str, path: str, body: dict[str, Any], deadline_s: float, *, quick: bool = False
) -> Reply | None:
    """The reply that took the job, or None after the job was marked as failed. Retries only what --retries allows."""
    while True:
        reply: Reply | None = None
        try:
            left = max(0.5, deadline_s - asyncio.get_running_loop().time())
            reply = await context.client.call(
                op, "POST", path, body=body, timeout_s=left, quick=quick, on_send=lambda at_s: context.sent(job, at_s)
            )
            job.http_status = reply.status
            if reply.job_status in TERMINAL or (reply.status < 300 and _is_accepted(reply)):
                context.answered(job)
                return reply
            error_class = submit_class(reply.status) if reply.status >= 300 else "bad_reply"
            detail = describe(reply)
        except CallError as error:
            error_class, detail = error.error_class, error.detail
            if error_class == "client_timeout":
                job.warn("left_running")
        context.answered(job)
        if not await context.again(job, error_class, detail, reply.retry_after_s if reply else None, deadline_s):
            context.end(job, context.clock.ms(reply.received_s) if reply else None)
            refuse(context, job, error_class, detail, reply)
            return None


def refuse(context: RunContext, job: Job, error_class: str, detail: str, reply: Reply | None) -> None:
    """A submit that was not taken. The service's own code is kept, and a policy's refusal told from others."""
    verdict = outcomes.failed(error_class, reply.body if reply else None)
    outcomes.settle(job, replace(verdict, error=detail), expect_blocked=context.options.expect_blocked)


def _is_accepted(reply: Reply) -> bool:
    return reply.job_status is not None and intake.job_id(reply.body.get("id")) is not None


async def follow(context: RunContext, job: Job, reply: Reply, deadline_s: float) -> None:
    """Asks until the state is final, the result is gone, or the deadline passed (then the job is cancelled)."""
    loop = asyncio.get_running_loop()
    lower_s = reply.sent_s
    state = reply.job_status
    if state:
        job.see(state, context.clock.ms(reply.received_s))
    options = context.options
    bad = 0
    while True:
        left = deadline_s - loop.time()
        if left <= 0:
            await give_up(context, job)
            return
        long = options.poll == "auto" and options.poll_interval is None and context.long_poll is not False
        if not long or bad:
            age_s = (context.clock.now_ms() - _sent(job)) / 1000
            gap = context.pace.gap_s(age_s, job.polls) if not bad else 0.25 * 2 ** min(bad, 5)
            await asyncio.sleep(min(gap, left))
            if loop.time() >= deadline_s:
                continue
        job.polls += 1
        try:
            reply = await _ask(context, job, long, max(0.5, deadline_s - loop.time()))
        except CallError as error:
            bad += 1
            if bad > BAD_POLLS_IN_A_ROW:
                _fail_poll(context, job, error.error_class, error.detail)
                return
            continue
        status = reply.job_status
        if reply.status == 404:
            _fail_poll(context, job, "result_expired", describe(reply))
            return
        if status is None or reply.status in (401, 403):
            bad += 1
            if bad > BAD_POLLS_IN_A_ROW or reply.status in (401, 403):
                _fail_poll(context, job, "poll_failed", describe(reply))
                return
            continue
        bad = 0
        held = (
            long and context.long_poll is True and reply.took_ms > max(HELD_MS, 2 * (context.client.rtt_min_ms or 0.0))
        )
        if status in TERMINAL:
            waited_ms = job.retry_wait_ms or 0.0
            began_ms = _sent(job) + waited_ms
            total = correct_total(
                lower_ms=context.clock.ms(reply.sent_s if held else lower_s) - began_ms,
                upper_ms=context.clock.ms(reply.received_s) - began_ms,
                rtt_min_ms=context.client.rtt_min_ms,
                delay_ms=number(reply.body.get("delayTime")),
                exec_ms=number(reply.body.get("executionTime")),
                held=held,
            )
            # RunPod's times begin with the attempt that it took; the caller had waited before.
            job.total_lower_ms, job.total_upper_ms = total.lower_ms + waited_ms, total.upper_ms + waited_ms
            if total.inconsistent:
                job.warn("timing_inconsistent")
            finish(context, job, reply, total_ms=total.corrected_ms + waited_ms)
            return
        job.see(status, context.clock.ms(reply.received_s))
        lower_s = reply.sent_s
        if long and not held:
            await asyncio.sleep(min(context.pace.gap_s((context.clock.now_ms() - _sent(job)) / 1000, job.polls), left))


async def _ask(context: RunContext, job: Job, long: bool, left_s: float) -> Reply:
    """One question about a job: a long poll where the service has it. The first 404 of one is checked against
    /status."""
    status = job_path("status", job.job_id)
    if not long:
        return await context.client.call("status", "GET", status, timeout_s=min(left_s, 30), quick=True)
    wait_s = min(max(left_s - 0.5, SHORTEST_WAIT_S), 90.0)
    path = f"{job_path('status-sync', job.job_id)}?wait={int(wait_s * 1000)}"
    reply = await context.client.call("status", "GET", path, timeout_s=min(left_s, wait_s + 15))
    if reply.status < 300 and reply.job_status is not None:
        context.long_poll = True
        return reply
    if context.long_poll is None and reply.status in (400, 404, 405, 501):
        plain = await context.client.call("status", "GET", status, timeout_s=min(left_s, 30), quick=True)
        if plain.status < 300:
            context.long_poll = False
            context.event("long_poll_unavailable", http_status=reply.status)
        return plain
    return reply


def finish(context: RunContext, job: Job, reply: Reply, *, total_ms: float) -> None:
    """Fills the record from a final status object."""
    body = reply.body
    job.done_ms = context.clock.ms(reply.received_s)
    job.total_ms = total_ms
    job.see(body["status"], job.done_ms)
    take_timings(job, body)
    answer = read_output(body.get("output"))
    verdict = outcomes.judge(answer, body["status"], body.get("error"))
    outcomes.note(job, answer, verdict, expect_blocked=context.options.expect_blocked)
    context.keep(job, body.get("output"))
    if job.ok:
        context.pace.learn(total_ms / 1000)
    context.settled(job)


def take_timings(job: Job, body: dict[str, Any]) -> None:
    job.delay_ms = number(body.get("delayTime"))
    job.exec_ms = number(body.get("executionTime"))
    job.worker_id = label(body.get("workerId"))
    job.platform_retries = count(body.get("retries"))
    if job.platform_retries:
        job.warn("retried")


async def give_up(context: RunContext, job: Job) -> None:
    """Cancels a job whose --timeout passed, so that it neither bills on nor delays the next."""
    context.end(job)
    last = job.states[-1][0] if job.states else "unknown"
    taken = job.job_id is not None and await context.cancel(job.job_id)
    end = "cancelled" if taken else "and the service did not take its cancel"
    job.fail("client_timeout", f"still {last} after {context.options.timeout:g} s; {end}")
    context.settled(job)


def _fail_poll(context: RunContext, job: Job, error_class: str, detail: str) -> None:
    if error_class not in ("result_expired", "poll_failed"):
        error_class, detail = "poll_failed", f"{error_class}: {detail}"
    context.end(job)
    job.fail(error_class, detail)
    if error_class == "result_expired":
        context.settled(job)


def _deadline(context: RunContext) -> float:
    return asyncio.get_running_loop().time() + context.options.timeout


def _sent(job: Job) -> float:
    return job.sent_ms if job.sent_ms is not None else 0.0
