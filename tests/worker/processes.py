"""Workers as processes, for the tests of signals, exit codes and the production path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from llmpod.endpoint import LocalEndpoint
from llmpod.worker.engine.start import cpu_fork_server

REPOSITORY = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


def environment() -> dict[str, str]:
    """This process's variables, without those that the tests' engine and vLLM set for their own children."""
    left_out = (*cpu_fork_server.DECIDED_BY_OTHERS, "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_LEVEL")
    return {name: value for name, value in os.environ.items() if name not in left_out}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """What is started inside keeps to one core: each of xdist's processes to another.

    Engines with as many threads as there are cores slow one another down several times over.
    """
    cores = os.sched_getaffinity(0)
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(cores)[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class WorkerProcess:
    """A worker under the SDK, its log lines as they come, and every process it started."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip("\n"))

    @property
    def events(self) -> list[Json]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def of(self, job_id: str) -> list[Json]:
        return [event for event in self.events if event.get("request_id") == job_id]

    async def event(self, name: str, job_id: str | None = None) -> Json:
        async with asyncio.timeout(150):
            while True:
                for event in self.events:
                    if event["event"] == name and job_id in (None, event.get("request_id")):
                        return event
                assert self.process.returncode is None, self.lines[-20:]
                await asyncio.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    async def end(self) -> int:
        async with asyncio.timeout(60):
            status = await self.process.wait()
            await self.reader
        return status


# While it decodes, vLLM keeps two cores so busy that the kernel can leave this process waiting for seconds; a test that
# acts on a running job needs its turn. `exec` keeps the process id.
BEHIND_THE_TESTS = ("sh", "-c", '(echo 19 > /proc/self/autogroup) 2>/dev/null; exec nice -n 19 "$@"', "sh")


async def spawn(
    endpoint: LocalEndpoint, worker_id: str, *, behind: tuple[str, ...] = BEHIND_THE_TESTS, **variables: str
) -> WorkerProcess:
    """handler.py as a worker of `endpoint`, with the real engine. `behind`: the command that runs it."""
    command = (*behind, sys.executable, "-u", str(REPOSITORY / "handler.py"))
    with one_core():
        return WorkerProcess(await start(endpoint, worker_id, *command, **{"MODEL_NAME": "llmpod-demo"} | variables))


async def start(endpoint: LocalEndpoint, worker_id: str, *command: str, **variables: str) -> asyncio.subprocess.Process:
    """Any command as a worker of `endpoint`, in a session of its own, so that all of it can be killed."""
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=REPOSITORY,
        env=environment() | endpoint.worker_env(worker_id) | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 24,
        start_new_session=True,
    )


async def gone(family: list[psutil.Process]) -> None:
    async with asyncio.timeout(30):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
            await asyncio.sleep(0.05)
