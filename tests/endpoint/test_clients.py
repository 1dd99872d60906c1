"""Clients that others wrote: RunPod's Python package, its JavaScript package, and the calls its Go package makes."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .conftest import serve

PYTHON_CLIENT = """
import os, runpod
runpod.api_key = os.environ["RUNPOD_API_KEY"]
endpoint = runpod.Endpoint("local")
print(endpoint.run_sync({"input": {"chunks": 2}}, timeout=30))
job = endpoint.run({"input": {"chunks": 3, "pause_ms": 200}})
print(job.status())
print([chunk["n"] for chunk in job.stream()])
print(job.output(timeout=10)[-1]["n"], job.status())
print(endpoint.run({"input": {"chunks": 100, "pause_ms": 1000}}).cancel()["status"])
print(endpoint.purge_queue())
print(sorted(endpoint.health()))
"""

JAVASCRIPT_CLIENT = """
import sdk from "runpod-sdk";
const endpoint = sdk("key-of-the-test", { baseUrl: process.argv[2] }).endpoint("local");
const say = (name, value) => console.error(name, JSON.stringify(value));
const whole = await endpoint.runSync({ input: { chunks: 2 } });
say("runSync", [whole.status, whole.succeeded, whole.output.length, typeof whole.executionTime]);
const job = await endpoint.run({ input: { chunks: 3, pause_ms: 100 } });
say("run", job.status);
const numbers = [];
for await (const chunk of endpoint.stream(job.id)) numbers.push(chunk.output.n);
say("stream", numbers);
const status = await endpoint.status(job.id);
say("status", [status.completed, status.succeeded, status.started]);
say("statusSync", (await endpoint.statusSync(job.id)).status);
const long = await endpoint.run({ input: { chunks: 100, pause_ms: 1000 } });
say("cancel", (await endpoint.cancel(long.id)).status);
say("purge", await endpoint.purgeQueue());
say("health", Object.keys(await endpoint.health()).sort());
"""


@pytest.fixture(scope="module")
async def keyed():
    async with serve(api_key="key-of-the-test", worker_variables={"STREAM": "1", "AGGREGATE": "1"}) as client:
        yield client


async def output_of(*command, **variables):
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


async def test_runpod_s_python_client_works_through_its_base_url(keyed):
    out, _ = await output_of(
        sys.executable,
        "-c",
        PYTHON_CLIENT,
        RUNPOD_ENDPOINT_BASE_URL=keyed.endpoint.base_url,
        RUNPOD_API_KEY="key-of-the-test",
    )
    assert out.splitlines() == [
        "[{'n': 0, 'echo': None}, {'n': 1, 'echo': None}]",
        "IN_PROGRESS",
        "[0, 1, 2]",
        "2 COMPLETED",
        "CANCELLED",
        "{'removed': 0, 'status': 'completed'}",
        "['jobs', 'workers']",
    ]


def javascript_folder() -> Path:
    """A folder with runpod-sdk in it, outside the repository; filled from the npm registry on first use."""
    folder = Path(tempfile.gettempdir()) / f"llmpod-tests-npm-{os.getuid()}"
    if not (folder / "node_modules" / "runpod-sdk").is_dir():
        npm = shutil.which("npm")
        assert npm, "the JavaScript client needs node and npm (Debian: apt-get install nodejs npm)"
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        subprocess.run([npm, "install", "--no-audit", "--no-fund", "runpod-sdk@1.1.2"], cwd=folder, check=True)
    return folder


async def test_runpod_s_javascript_client_works_with_a_base_url(keyed):
    folder = await asyncio.to_thread(javascript_folder)
    script = folder / "client.mjs"
    await asyncio.to_thread(script.write_text, JAVASCRIPT_CLIENT)
    _, err = await output_of("node", str(script), keyed.endpoint.base_url)
    assert err.splitlines() == [
        'runSync ["COMPLETED",true,2,"number"]',
        'run "IN_QUEUE"',
        "stream [0,1,2]",
        "status [true,true,true]",
        'statusSync "COMPLETED"',
        'cancel "CANCELLED"',
        'purge {"removed":0,"status":"completed"}',
        'health ["jobs","workers"]',
    ]


async def test_the_calls_of_runpod_s_go_client_get_the_shapes_it_parses(keyed):
    """It POSTs everything but health, waits through ?wait=, and decodes numbers into integers."""
    headers = {"Authorization": "Bearer key-of-the-test", "Content-Type": "application/json"}
    _, job = await keyed.post("/run", {"input": {"chunks": 2}}, headers=headers)
    status, chunks = await keyed.post(f"/stream/{job['id']}?wait=90000", headers=headers)
    assert status == 200
    assert isinstance(chunks["stream"], list)
    status, body = await keyed.post(f"/status-sync/{job['id']}?wait=90000", headers=headers)
    assert status == 200
    assert {key: type(body[key]) for key in ("id", "status", "delayTime", "executionTime")} == {
        "id": str,
        "status": str,
        "delayTime": int,
        "executionTime": int,
    }
    status, body = await keyed.post(f"/status/{job['id']}", headers=headers)
    assert (status, body["status"]) == (200, "COMPLETED")
    status, health = await keyed.get("/health", headers=headers)
    assert all(isinstance(count, int) for part in health.values() for count in part.values())
