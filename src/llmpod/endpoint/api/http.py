"""HTTP helpers of all routes: bodies under a limit, JSON answers, faults, cut connections, waiting for a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.faults import DROP, DROP_AFTER, Faults, delay_s, draw
from llmpod.endpoint.state.job import Job


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def bad_request(error: ValidationError) -> ApiError:
    """ApiError 400 with the first thing that a model found wrong."""
    first = error.errors()[0]
    return ApiError(400, f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}")


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """The whole body. Raises ApiError 400 above `limit_bytes`, after decompression too, without reading further.

    400 as well where the body is not what its Content-Encoding or its chunks say.
    """
    declared = request.content_length
    if declared is not None and declared > limit_bytes:
        raise ApiError(400, f"the body of {declared} bytes is above the limit of {limit_bytes}")
    parts = []
    size = 0
    try:
        while part := await request.content.readany():
            size += len(part)
            if size > limit_bytes:
                raise ApiError(400, f"the body is above the limit of {limit_bytes} bytes")
            parts.append(part)
    except web.RequestPayloadError as error:
        raise ApiError(400, f"the body cannot be read: {' '.join(str(error).split())}") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def wait_for_end(job: Job, timeout_s: float, *, or_first_chunk: bool = False) -> bool:
    """Waits until the job has ended, or has a chunk; False when `timeout_s` passed before."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not job.ended and not (or_first_chunk and job.chunks):
        left_s = deadline_s - loop.time()
        if left_s <= 0 or not await job.changed.wait(left_s):
            return False
    return True


def hang_up(request: web.Request) -> web.Response:
    """Cuts the connection under a request; the response is for the framework alone, nobody can read it."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


async def with_faults(
    request: web.Request,
    faults: Faults,
    operation: str,
    random: Random,
    answer: Callable[[], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """The answer to a call, unless a fault meets the call. Raises ApiError where that is an HTTP status."""
    outcome = draw(faults, operation, random)
    if isinstance(outcome, int):
        raise ApiError(outcome, "injected fault")
    if outcome == DROP or (outcome == DROP_AFTER and operation == "job-take"):
        return hang_up(request)
    if pause_s := delay_s(faults, operation, request.content_length or 0, random):
        await asyncio.sleep(pause_s)
    response = await answer()
    return hang_up(request) if outcome == DROP_AFTER else response
