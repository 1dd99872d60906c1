"""Calls of the smoke test: a job submitted, followed to its end, and cancelled where it has none."""

import asyncio
import contextlib
from time import perf_counter
from typing import Any

from llmpod.loadtest.intake import job_id, job_path
from llmpod.loadtest.model.failures import TERMINAL, error_text
from llmpod.loadtest.run.client import CallError, Reply, RunPod
from llmpod.loadtest.run.context import describe

POLL_S = (0.1, 2.0)
"""The first gap between two looks at a job's status, and the longest."""
CALL_S = 30.0


class CheckError(Exception):
    """A check's answer is no; the message is the line that says what was seen."""


async def submit(client: RunPod, body: dict[str, Any]) -> str:
    """The id of a job that was accepted. Raises CheckError, and CallError as all of these."""
    reply = await client.call("run", "POST", "/run", body=body, timeout_s=CALL_S)
    accepted = job_id(reply.body.get("id")) if isinstance(reply.body, dict) else None
    if reply.status >= 300 or accepted is None:
        raise CheckError(f"/run: {describe(reply)}")
    return accepted


async def run(client: RunPod, body: dict[str, Any], timeout_s: float) -> Reply:
    """A job's end, whatever it is. Raises CheckError: it was not accepted, or did not end in time."""
    accepted = await submit(client, body)
    deadline_s, gap_s, status = perf_counter() + timeout_s, POLL_S[0], ""
    try:
        while True:
            reply = await status_of(client, accepted)
            status = reply.job_status or ""
            if status in TERMINAL:
                return reply
            if not status:
                raise CheckError(f"/status: {describe(reply)}")
            if perf_counter() + gap_s > deadline_s:
                raise CheckError(f"still {status} after {timeout_s:g} s")
            await asyncio.sleep(gap_s)
            gap_s = min(POLL_S[1], gap_s * 1.5)
    finally:
        await leave_nothing(client, accepted, status)


async def status_of(client: RunPod, accepted: str) -> Reply:
    return await client.call("status", "GET", job_path("status", accepted), timeout_s=CALL_S)


async def leave_nothing(client: RunPod, accepted: str, status: str) -> None:
    """Cancels a job that has not ended: it would run, and cost, on."""
    if status not in TERMINAL:
        with contextlib.suppress(CallError):
            await client.call("cancel", "POST", job_path("cancel", accepted), timeout_s=10)


def why(done: Reply) -> str:
    """The reason that a job's end names."""
    return error_text(done.body.get("error")) or "no reason given" if isinstance(done.body, dict) else "no reason given"
