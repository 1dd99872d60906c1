"""Reporter: sends the metrics to a Pushgateway and writes them into the log, at intervals, in a thread each.

A worker of a queue endpoint has no port that Prometheus could scrape, and a job for /metrics is answered by whichever
worker takes it. The threads do not depend on the event loop, so a worker whose loop hangs still reports.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import delete_from_gateway, push_to_gateway
from prometheus_client.exposition import basic_auth_handler

from llmpod.worker.event_log import Emit, describe
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.settings import Settings

JOB = "llmpod"
TIMEOUT_S = 5.0
"""Deadline of one call of the gateway."""
EXIT_S = 8.0
"""For how long the exit waits for the last push and the deletion."""


@contextlib.contextmanager
def reporting(settings: Settings, metrics: Metrics, emit: Emit, environment: Mapping[str, str]) -> Iterator[None]:
    """Report inside the block, once more when it ends, and then delete what was pushed: the worker is gone.

    `environment`: holds RunPod's names of the endpoint and of this worker.
    """
    tasks: list[tuple[float, Callable[[], None]]] = []
    if settings.snapshot_seconds:
        tasks.append((settings.snapshot_seconds, lambda: emit("snapshot", metrics=metrics.snapshot())))
    gateway = None
    if settings.metrics_push_url:
        names = {
            "endpoint": environment.get("RUNPOD_ENDPOINT_ID") or "none",
            "worker": environment.get("RUNPOD_POD_ID") or "none",
        }
        gateway = Gateway(settings.metrics_push_url, names, metrics, emit)
        tasks.append((settings.metrics_push_seconds, gateway.push))
    stopped = threading.Event()
    threads = [threading.Thread(target=_repeat, args=(*task, stopped), name="metrics", daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        deadline = time.monotonic() + EXIT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if gateway is not None and not any(thread.is_alive() for thread in threads):
            gateway.delete()


def _repeat(interval_s: float, act: Callable[[], None], stopped: threading.Event) -> None:
    while not stopped.wait(interval_s):
        act()
    act()


class Gateway:
    """A Pushgateway, which keeps the latest numbers of each worker. Failures are counted and never raised."""

    def __init__(self, url: str, names: Mapping[str, str], metrics: Metrics, emit: Emit) -> None:
        """`url`: may hold a user name and a password. `names`: the grouping key, one group per worker."""
        address = urlsplit(url)
        self._url = urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))
        self._options: dict[str, Any] = {"grouping_key": dict(names), "timeout": TIMEOUT_S}
        if address.username:
            user, password = unquote(address.username), unquote(address.password or "")
            self._options["handler"] = functools.partial(basic_auth_handler, username=user, password=password)
        self._metrics = metrics
        self._emit = emit
        self._failing = False

    def push(self) -> None:
        """Replace this worker's numbers by the present ones."""
        self._call(lambda: push_to_gateway(self._url, JOB, self._metrics.registry, **self._options))

    def delete(self) -> None:
        """Remove this worker's numbers."""
        self._call(lambda: delete_from_gateway(self._url, JOB, **self._options))

    def _call(self, call: Callable[[], None]) -> None:
        """Make a call; the first failure in a row is logged, without the address."""
        try:
            call()
            self._failing = False
        except Exception as error:  # noqa: BLE001 - numbers that do not arrive must not end what they describe
            self._metrics.add("llmpod_push_failures_total")
            if not self._failing:
                self._emit("push_failed", level="warning", cause=describe(error))
            self._failing = True
