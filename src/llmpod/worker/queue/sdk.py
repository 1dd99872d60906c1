"""Parts of RunPod's SDK that the worker uses beyond its documented interface, and the changes made to it.

`missing` checks at start that they are all there. If one is not, the SDK's own job loop is used: slower, and
independent of everything else here. What cannot be checked at start is held by tests/worker/queue/test_sdk_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import operator
import socket
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import runpod

from llmpod.worker.event_log import Emit

VERSION = str(runpod.__version__)


def _module(name: str) -> Any:
    """A module of the SDK; an empty one if this release does not have it."""
    try:
        return importlib.import_module(f"runpod.{name}")
    except ImportError:
        return types.ModuleType(name)


http_client = _module("http_client")
serverless_worker = _module("serverless.worker")
rp_fitness = _module("serverless.modules.rp_fitness")
rp_http = _module("serverless.modules.rp_http")
rp_job = _module("serverless.modules.rp_job")
rp_logger = _module("serverless.modules.rp_logger")
rp_scale = _module("serverless.modules.rp_scale")

TORCH_CHECKS = frozenset({"_cuda_init_check", "_benchmark_check"})
"""Fitness checks that run torch on the GPU in this process (rp_system_fitness.py). The CUDA context they leave behind
takes memory from the engine's processes and forbids to fork them; the `gpu_test` check, a process of its own, stays."""

TooManyRequests: type[aiohttp.ClientResponseError] = getattr(
    http_client, "TooManyRequests", aiohttp.ClientResponseError
)


def _called_with(arguments: int) -> Callable[[Any], bool]:
    """Whether a value can be called with so many positional arguments; more that are optional do no harm."""

    def check(value: Any) -> bool:
        try:
            inspect.signature(value).bind(*range(arguments))
        except (TypeError, ValueError):
            return False
        return True

    return check


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _uses(*names: str) -> Callable[[Any], bool]:
    """Whether a function's code refers to all these names."""
    return lambda value: set(names) <= set(getattr(getattr(value, "__code__", None), "co_names", ()))


USED: Mapping[str, Callable[[Any], bool]] = {
    "serverless_worker.rp_scale": _is(types.ModuleType),
    "serverless_worker.run_worker": _uses("rp_scale", "JobScaler", "start"),
    "rp_scale.JobScaler": _called_with(1),
    "rp_scale.JobScaler.start": _uses("run", "handle_shutdown", "SIGTERM", "SIGINT"),
    "rp_scale.JobScaler.run": _called_with(1),
    "rp_scale.JobScaler.handle_shutdown": _called_with(3),
    "rp_scale.JobScaler.kill_worker": _called_with(1),
    "scaler.concurrency_modifier": _called_with(1),
    "scaler.config": _is(dict),
    "scaler.current_concurrency": _is(int),
    "scaler.job_progress.add": _called_with(1),
    "scaler.job_progress.remove": _called_with(1),
    "scaler.jobs_fetcher": _called_with(2),
    "scaler.jobs_fetcher_timeout": _is(int, float),
    "scaler.jobs_tasks": _is(dict),
    "scaler.stop_signals_fetcher": _called_with(1),
    "scaler.stop_signals_fetcher_timeout": _is(int, float),
    "scaler._shutdown_event": _is(asyncio.Event),
    "rp_job._job_stop_url": _called_with(0),
    "rp_http.JOB_STREAM_URL": _is(str),
    "rp_http.JOB_DONE_URL": _is(str),
    "http_client.TooManyRequests": lambda value: (
        isinstance(value, type) and issubclass(value, aiohttp.ClientResponseError)
    ),
    "http_client.get_auth_header": _called_with(0),
    "rp_fitness._ensure_gpu_check_registered": _called_with(0),
    "rp_fitness._ensure_system_checks_registered": _called_with(0),
    "rp_fitness._fitness_checks": _is(list),
    "rp_logger.RunPodLogger.log": _called_with(4),
    "rp_logger.RunPodLogger.level": _is(str),
}
"""Every name used here and in loop.py, with its check. `scaler` is an instance of JobScaler."""


def missing() -> list[str]:
    """The names in USED that the installed SDK does not have, or has in another form. Takes less than a millisecond."""
    try:
        scaler = rp_scale.JobScaler({})
    except Exception:  # noqa: BLE001 - however it fails, its attributes are what is missing
        scaler = None
    return [name for name, is_as_used in USED.items() if not _holds(name, is_as_used, scaler)]


def _holds(name: str, is_as_used: Callable[[Any], bool], scaler: Any) -> bool:
    root, _, path = name.partition(".")
    try:
        return is_as_used(operator.attrgetter(path)(scaler if root == "scaler" else globals()[root]))
    except AttributeError:
        return False


def urls() -> tuple[str, str]:
    """The addresses for stream chunks and for results; `$ID` in them stands for the job's id."""
    return str(rp_http.JOB_STREAM_URL), str(rp_http.JOB_DONE_URL)


def stop_url() -> str | None:
    """The address of the stop channel, or None if it cannot be derived from this worker's job-take address."""
    url = rp_job._job_stop_url()
    return None if url is None else str(url)


class PollSession:
    """Client session for job-take calls whose connections can be half-closed, so that no job is lost.

    A job is handed out in the response to an open call, without acknowledgement: cancelling the call could lose a
    response on its way. So the sending side of the connection is closed instead: RunPod sees that the call has ended,
    and what it had sent before still arrives.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._half_closed = False
        connector = aiohttp.TCPConnector(limit=0, socket_factory=self._make_socket)
        self.client = open_session(connector)

    def half_close(self) -> None:
        """Close the sending side of all connections and refuse new ones."""
        self._half_closed = True  # aiohttp repeats a GET whose connection closes, and must not
        for open_socket in list(self._sockets):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_WR)

    def resume(self) -> None:
        """Allow connections again."""
        self._half_closed = False

    def _make_socket(self, address: Any) -> socket.socket:
        if self._half_closed:
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

    A redirect is a failure: following it would send a result or the key elsewhere, or read a login page as an answer.
    """
    return aiohttp.ClientSession(
        middlewares=(_refuse_redirects,),
        connector=connector or aiohttp.TCPConnector(limit=0),
        headers=http_client.get_auth_header(),
        timeout=aiohttp.ClientTimeout(total=600),
    )


def forgo_torch_checks() -> None:
    """Register the SDK's fitness checks as it would itself, without those that start CUDA in this process."""
    rp_fitness._ensure_gpu_check_registered()
    rp_fitness._ensure_system_checks_registered()
    checks: list[Callable[..., Any]] = rp_fitness._fitness_checks
    checks[:] = [check for check in checks if check.__name__ not in TORCH_CHECKS]


def quiet(emit: Emit, level: str) -> None:
    """Convert the SDK's log lines to events. By default it logs every chunk of every answer, at DEBUG."""
    severities = {"debug": 1, "info": 2, "warning": 3, "error": 4}
    threshold = severities[level]

    def log(self: Any, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        severity = {"WARN": "warning"}.get(message_level, message_level.lower())
        if severities.get(severity, 2) >= threshold:
            emit("log", level=severity, logger="runpod", message=str(message)[:1000], request_id=job_id)

    rp_logger.RunPodLogger.log = log
    rp_logger.RunPodLogger.level = {"warning": "WARN"}.get(level, level.upper())
