"""What the worker leans on in RunPod's SDK, beyond its public names, and changes in it.

tests/worker/queue/test_sdk_contract.py holds each of these parts. An SDK release it has not been run against gets the
stock loop: slower, and independent of everything here.
"""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections.abc import Callable
from typing import Any

import aiohttp
import runpod
from runpod import http_client
from runpod.serverless.modules import rp_fitness, rp_http, rp_job, rp_logger

from llmpod.worker.event_log import Emit

KNOWN_VERSIONS = frozenset({"1.12.0"})
VERSION = str(runpod.__version__)

TORCH_CHECKS = frozenset({"_cuda_init_check", "_benchmark_check"})
"""Fitness checks that run torch on the GPU in this process (rp_system_fitness.py). The CUDA context they leave behind
takes memory from the engine's processes and forbids to fork them; the `gpu_test` check, a process of its own, stays."""

TooManyRequests: type[aiohttp.ClientResponseError] = http_client.TooManyRequests


def urls() -> tuple[str, str]:
    """Where stream chunks and results go; both hold `$ID` for the job's id."""
    return str(rp_http.JOB_STREAM_URL), str(rp_http.JOB_DONE_URL)


def stop_url() -> str | None:
    """The stop channel, or None if this worker's take address does not tell where it is."""
    url = rp_job._job_stop_url()
    return None if url is None else str(url)


class Polls:
    """The session of the job-take calls: one that can hang up without losing a job.

    A job is handed out by answering a held call, and nobody acknowledges it. To cancel such a call could drop an answer
    that is already on its way. So the sending half of the connection is closed instead: the other side sees that
    nobody waits any more, and what it had sent before still arrives.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._hung_up = False
        connector = aiohttp.TCPConnector(limit=0, socket_factory=self._make_socket)
        self.session = open_session(connector)

    def hang_up(self) -> None:
        """Tell RunPod that no answer is expected any more."""
        self._hung_up = True  # aiohttp repeats a GET whose connection closes, and must not
        for open_socket in list(self._sockets):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_WR)

    def resume(self) -> None:
        """Allow calls again."""
        self._hung_up = False

    def _make_socket(self, address: Any) -> socket.socket:
        if self._hung_up:
            raise ConnectionAbortedError("hung up")
        made = socket.socket(address[0], address[1], address[2])
        made.setblocking(False)
        self._sockets.add(made)
        return made


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
    return response


def open_session(connector: aiohttp.TCPConnector | None = None) -> aiohttp.ClientSession:
    """A pooled client session with the SDK's headers; its own factory takes no connector.

    A redirect is a failure: followed, it would take a result or the key elsewhere, and a login page for an answer.
    """
    return aiohttp.ClientSession(
        middlewares=(_refuse_redirects,),
        connector=connector or aiohttp.TCPConnector(limit=0),
        headers=http_client.get_auth_header(),
        timeout=aiohttp.ClientTimeout(total=600),
    )


@contextlib.contextmanager
def batch_of(job: dict[str, Any]) -> Any:
    """The SDK's log lines carry the job's batch id, if it has one."""
    token = rp_logger._set_batch_id(job.get("batchId"))
    try:
        yield
    finally:
        rp_logger._reset_batch_id(token)


def forgo_torch_checks() -> None:
    """Register the SDK's fitness checks as it would itself, without those that start CUDA in this process."""
    rp_fitness._ensure_gpu_check_registered()
    rp_fitness._ensure_system_checks_registered()
    checks: list[Callable[..., Any]] = rp_fitness._fitness_checks
    checks[:] = [check for check in checks if check.__name__ not in TORCH_CHECKS]


def quiet(emit: Emit, level: str) -> None:
    """The SDK's lines become events. By default it logs every chunk of every answer, at DEBUG."""
    severities = {"debug": 1, "info": 2, "warning": 3, "error": 4}
    threshold = severities[level]

    def log(self: Any, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        severity = {"WARN": "warning"}.get(message_level, message_level.lower())
        if severities.get(severity, 2) >= threshold:
            emit("log", level=severity, logger="runpod", message=str(message)[:1000], request_id=job_id)

    rp_logger.RunPodLogger.log = log
    rp_logger.RunPodLogger.level = {"warning": "WARN"}.get(level, level.upper())
