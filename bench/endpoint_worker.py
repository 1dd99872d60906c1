"""The worker of bench/endpoint.py: the stock SDK with a handler that does nothing, and a note of when things happened.

The two wrappers only read the clock; CLOCK_MONOTONIC is the same in every process of a machine.
"""

import json
import os
import time
from pathlib import Path

import runpod
from runpod.serverless.modules import rp_job, rp_scale

NOTES = os.environ.get("BENCH_NOTES")
got: dict[str, float] = {}


async def handler(job):
    return {}


if NOTES:
    notes = Path(NOTES).open("a", buffering=1)  # noqa: SIM115 -- open for the life of the process
    get_job, send_result = rp_scale.get_job, rp_job.send_result

    async def timed_get_job(session, count=1):
        jobs = await get_job(session, count)
        for job in jobs or []:
            got[job["id"]] = time.monotonic()
        return jobs

    async def timed_send_result(session, result, job, is_stream=False):
        posting = time.monotonic()
        await send_result(session, result, job, is_stream=is_stream)
        notes.write(json.dumps([job["id"], got.pop(job["id"]), posting]) + "\n")

    rp_scale.get_job, rp_job.send_result = timed_get_job, timed_send_result

concurrency = int(os.environ.get("BENCH_CONCURRENCY", "1"))
runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})
