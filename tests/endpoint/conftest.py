"""Endpoints with the echo worker, shared per module: a worker's start costs 1.5 s of SDK import."""

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from llmpod.endpoint import LocalEndpoint, Options

WORKERS = Path(__file__).parent / "workers"
ECHO = [sys.executable, "-u", str(WORKERS / "echo.py")]


def make_options(**changes):
    """Options for tests: one echo worker, short holds, quick looks, no rate limits, no output."""
    environment = changes.pop("worker_variables", {})
    defaults = {
        "port": 0,
        "command": ECHO,
        "workers_min": 1,
        "workers_max": 1,
        "ping_interval_ms": 1000,
        "take_hold_s": 2,
        "stop_hold_s": 2,
        "scale_period_s": 0.05,
        "grace_s": 5,
        "rate_limits": False,
        "policy_bounds": False,
        "journal": "",
        "console": False,
    }
    options = Options(**(defaults | changes))
    return options.model_copy(update={"env": options.env | environment})


class Client:
    """An endpoint and plain HTTP against it: every call gives (status, body)."""

    def __init__(self, endpoint, session):
        self.endpoint = endpoint
        self.session = session

    async def call(self, method, path, **kwargs):
        url = path if path.startswith("http") else self.endpoint.url + path
        async with self.session.request(method, url, **kwargs) as response:
            body = await response.json() if response.content_type == "application/json" else await response.read()
            return response.status, body

    async def post(self, path, json=None, **kwargs):
        return await self.call("POST", path, json=json, **kwargs)

    async def get(self, path, **kwargs):
        return await self.call("GET", path, **kwargs)

    async def run(self, job_input, **fields):
        status, body = await self.post("/run", {"input": job_input, **fields})
        assert status == 200, body
        return body["id"]

    async def runsync(self, job_input, **fields):
        status, body = await self.post("/runsync", {"input": job_input, **fields})
        assert status == 200, body
        return body

    async def end(self, job_id, wait=30_000):
        status, body = await self.get(f"/status-sync/{job_id}?wait={wait}")
        assert status == 200, body
        return body

    async def until(self, job_id, state, wait_s=20):
        async with asyncio.timeout(wait_s):
            while self.endpoint.job(job_id).state.value != state:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serve(**changes):
    """An endpoint with a client; waits for its workers when it starts any."""
    options = make_options(**changes)
    async with LocalEndpoint(options) as endpoint, aiohttp.ClientSession() as session:
        if options.fleet and options.workers_min:
            await endpoint.ready(options.workers_min)
        yield Client(endpoint, session)


@pytest.fixture(scope="module")
async def echo():
    """One echo worker, eight jobs at a time."""
    async with serve() as client:
        yield client


@pytest.fixture(scope="module")
async def streaming():
    """One worker whose handler is a generator, with aggregate output."""
    async with serve(worker_variables={"STREAM": "1", "AGGREGATE": "1"}) as client:
        yield client


@pytest.fixture
async def bare():
    """No workers: the tests play them."""
    async with serve(fleet=False) as client:
        yield client
