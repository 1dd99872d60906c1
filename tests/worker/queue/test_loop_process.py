"""The worker as a process: signals, exit codes, and nobody left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest

from llmpod.endpoint import JobState, LocalEndpoint, Options
from tests.worker.processes import REPOSITORY, Json, WorkerProcess, start
from tests.worker.scripted import until

pytestmark = pytest.mark.process


class Process(WorkerProcess):
    """A worker with the scripted engine, and the endpoint it works for."""

    def __init__(self, endpoint: LocalEndpoint, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self.endpoint = endpoint

    def named(self, name: str) -> list[Json]:
        return [event for event in self.events if event["event"] == name]

    async def submit(self, **job_input: Any) -> str:
        job_input = {"prompt": "hello", "sampling_params": {"max_tokens": 200}} | job_input
        url = self.endpoint.url + "/run"
        async with aiohttp.ClientSession() as session, session.post(url, json={"input": job_input}) as response:
            job_id: str = (await response.json())["id"]
        return job_id

    async def end_within(self, timeout_s: float) -> int:
        family = psutil.Process(self.process.pid).children(recursive=True)
        began = time.monotonic()
        status = await asyncio.wait_for(self.process.wait(), timeout_s)
        self.took_s = time.monotonic() - began
        await self.reader
        await until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family), 5)
        return status


@asynccontextmanager
async def worker(*arguments: str, ready: bool = True, **variables: str) -> AsyncIterator[Process]:
    options = Options(port=0, fleet=False, journal="", console=False, ping_interval_ms=1000)
    async with LocalEndpoint(options) as endpoint:
        command = (sys.executable, "-u", "-m", "tests.worker.scripted_process", *arguments)
        variables |= {"PYTHONPATH": str(REPOSITORY / "src")}
        process = await start(endpoint, "process-1", *command, **variables)
        started = Process(endpoint, process)
        try:
            if ready:
                await endpoint.ready()
            else:
                await until(lambda: started.named("loading"), 60)
            yield started
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await started.reader


async def test_sigterm_finishes_what_runs_and_exits_0_and_heartbeats_went_on() -> None:
    async with worker() as running:
        job_id = await running.submit()
        await until(lambda: running.named("start"))
        await until(lambda: running.endpoint.worker("process-1").last_ping_s)
        running.process.send_signal(signal.SIGTERM)
        assert await running.end_within(10) == 0, running.lines
        assert running.endpoint.job(job_id).state is JobState.COMPLETED


async def test_an_idle_worker_exits_0_at_once() -> None:
    async with worker() as running:
        await asyncio.sleep(0.2)
        running.process.send_signal(signal.SIGINT)
        assert await running.end_within(10) == 0, running.lines
        assert running.took_s < 3, "the stock loop waits for both long polls"


async def test_a_second_signal_ends_the_worker_now_and_says_so_in_its_status() -> None:
    async with worker(DRAIN_SECONDS="60", MAX_TOKENS_MAX="0") as running:
        await running.submit(sampling_params={"max_tokens": 50_000})
        await until(lambda: running.named("start"))
        running.process.send_signal(signal.SIGTERM)
        await until(lambda: running.named("draining"))
        running.process.send_signal(signal.SIGTERM)
        assert await running.end_within(5) == 128 + signal.SIGTERM
        assert running.took_s < 1.5


async def test_sigterm_while_the_model_loads_exits_0_within_5_s_and_leaves_no_process() -> None:
    async with worker("load", ready=False) as running:
        running.process.send_signal(signal.SIGTERM)
        assert await running.end_within(10) == 0, running.lines
        assert running.took_s < 5


async def test_an_engine_that_does_not_end_is_left_behind_by_force() -> None:
    async with worker("hang", "load", ready=False) as running:
        running.process.send_signal(signal.SIGTERM)
        assert await running.end_within(10) == 0, running.lines
        assert running.took_s < 5.5


async def test_a_dead_engine_makes_the_process_exit_1_with_one_last_line() -> None:
    async with worker("die-after", "1.5", MAX_TOKENS_MAX="0") as running:
        job_id = await running.submit(sampling_params={"max_tokens": 50_000})
        assert await running.end_within(15) == 1, running.lines
        error = json.loads(str(running.endpoint.job(job_id).error))
        assert (error["code"], error["retryable"]) == ("engine_dead", True)
        assert json.loads(running.lines[-1])["event"] == "fatal"
