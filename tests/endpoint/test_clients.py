"""Clients that others wrote: RunPod's Python package, its JavaScript package, and the types of its Go package."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.endpoint.conftest import serve

pytestmark = pytest.mark.process

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
const types = (value) => Object.fromEntries(Object.keys(value).sort().map((key) => [key, typeof value[key]]));
const policy = { ttl: 60000, executionTimeout: 50000, lowPriority: true };
const slow = { input: { chunks: 100, pause_ms: 1000 }, policy };
const whole = await endpoint.runSync({ input: { chunks: 2 } });
say("runSync", [whole.status, whole.succeeded, whole.output.length]);
say("types", types(whole));
const failed = await endpoint.runSync({ input: { chunks: 1, fail_at: 0 } });
say("failed", [failed.status, failed.completed, failed.succeeded, typeof failed.error]);
const late = await endpoint.runSync({ input: { chunks: 1, pause_ms: 1500 } }, 1000);
say("runSync beyond its wait", [late.status, late.completed]);
const job = await endpoint.run({ input: { chunks: 3, pause_ms: 100 } });
say("run", types(job));
const numbers = [];
for await (const chunk of endpoint.stream(job.id)) numbers.push(chunk.output.n);
say("stream", numbers);
const status = await endpoint.status(job.id);
say("status", [status.completed, status.succeeded, status.started]);
say("statusSync", (await endpoint.statusSync(job.id)).status);
const long = await endpoint.run(slow);
let running;
do { running = await endpoint.status(long.id); } while (running.status === "IN_QUEUE");
say("running", [running.status, running.completed, typeof running.delayTime]);
say("cancel", types(await endpoint.cancel(long.id)));
say("purge", await endpoint.purgeQueue());
say("health", types((await endpoint.health()).jobs));
say("workers", types((await endpoint.health()).workers));
await endpoint.status("nope").catch((error) => say("unknown", error.response.status));
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
        'runSync ["COMPLETED",true,2]',
        'types {"completed":"boolean","delayTime":"number","executionTime":"number","id":"string","output":"object",'
        '"started":"boolean","status":"string","succeeded":"boolean","workerId":"string"}',
        'failed ["FAILED",true,false,"string"]',
        'runSync beyond its wait ["COMPLETED",true]',
        'run {"id":"string","status":"string"}',
        "stream [0,1,2]",
        "status [true,true,true]",
        'statusSync "COMPLETED"',
        'running ["IN_PROGRESS",false,"number"]',
        'cancel {"delayTime":"number","executionTime":"number","id":"string","status":"string","workerId":"string"}',
        'purge {"removed":0,"status":"completed"}',
        'health {"completed":"number","failed":"number","inProgress":"number","inQueue":"number","retried":"number"}',
        'workers {"idle":"number","initializing":"number","ready":"number","running":"number","throttled":"number",'
        '"unhealthy":"number"}',
        "unknown 404",
    ]


GO_STATUS = {
    "id": str,
    "status": str,
    "delayTime": int,
    "executionTime": int,
    "retries": int,
    "error": str,
    "output": object,
}
GO_TYPES = {
    "run": {"id": str, "status": str},
    "runsync": GO_STATUS,
    "status": GO_STATUS,
    "status-sync": GO_STATUS,
    "cancel": {name: kind for name, kind in GO_STATUS.items() if name not in ("output", "retries")},
    "purge-queue": {"status": str, "removed": int},
    "stream": {"status": str, "stream": list},
    "health": {"jobs": dict, "workers": dict},
    "health.jobs": dict.fromkeys(("inProgress", "inQueue", "completed", "failed", "retried"), int),
    "health.workers": dict.fromkeys(("running", "idle", "initializing", "ready", "throttled"), int),
}
"""RunPod's Go client decodes each answer into a struct: these fields, of these JSON types, each of which may be absent.

encoding/json refuses the whole answer when one has another type, and a number with a fraction where int stands.
"""


def go_decodes(operation, answer):
    """The fields of the struct that an answer fills."""
    assert isinstance(answer, dict)
    filled = {name: answer[name] for name in GO_TYPES[operation] if answer.get(name) is not None}
    for name, value in filled.items():
        wanted = GO_TYPES[operation][name]
        assert wanted is object or type(value) is wanted, f"{operation}: {name} is {value!r}"
    return filled


class GoClient:
    """The calls that RunPod's Go client makes, and what its types take of the answers; any code but 200 is an error."""

    def __init__(self, client):
        self.client = client

    async def call(self, operation, path="", body=None):
        method = "GET" if operation == "health" else "POST"
        headers = {"Authorization": "Bearer key-of-the-test", "Content-Type": "application/json"}
        data = b"" if body is None else json.dumps(body)
        status, answer = await self.client.call(method, f"/{operation}{path}", data=data, headers=headers)
        assert status == 200
        return go_decodes(operation, answer)


GO_JOB = {
    "input": {"chunks": 3, "pause_ms": 300},
    "policy": {"ttl": 60_000, "executionTimeout": 50_000},
    "s3Config": {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "http://x", "objectPath": "p"},
    "webhook": "http://127.0.0.1:1/",
    "webhookV2": "http://127.0.0.1:1/",
}


async def test_what_runpod_s_go_client_asks_for_comes_in_the_types_it_decodes(keyed):
    go = GoClient(keyed)
    assert set(await go.call("runsync", "?wait=90000", {"input": {"chunks": 2}})) == {
        "id", "status", "delayTime", "executionTime", "output",
    }  # fmt: skip
    failed = await go.call("runsync", "?wait=90000", {"input": {"chunks": 1, "fail_at": 0}})
    assert "told to fail" in failed["error"]
    job = await go.call("run", body=GO_JOB)
    assert set(job) == {"id", "status"}
    path = f"/{job['id']}"
    chunks, state = [], ""
    while state not in ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"):
        assert set(await go.call("status", path)) >= {"id", "status"}
        part = await go.call("stream", path + "?wait=90000")
        assert set(part) == {"status", "stream"}
        assert all(isinstance(chunk, dict) for chunk in part["stream"])
        chunks, state = chunks + part["stream"], part["status"]
    assert [chunk["output"]["n"] for chunk in chunks] == [0, 1, 2]
    assert len((await go.call("status-sync", path + "?wait=90000"))["output"]) == 3
    queued = await go.call("run", body={"input": {"chunks": 50, "pause_ms": 1000}})
    await keyed.until(queued["id"], "IN_PROGRESS")
    assert set(await go.call("cancel", f"/{queued['id']}")) == {"id", "status", "delayTime", "executionTime"}
    assert await go.call("purge-queue") == {"removed": 0, "status": "completed"}
    health = await go.call("health")
    for part in ("jobs", "workers"):
        assert set(go_decodes(f"health.{part}", health[part])) == set(GO_TYPES[f"health.{part}"])


async def test_a_retried_job_shows_its_retries_in_go_s_type(keyed):
    go = GoClient(keyed)
    job = await go.call("runsync", "?wait=90000", {"input": {"chunks": 1, "fail_at": 0}})
    headers = {"Authorization": "Bearer key-of-the-test"}
    assert (await keyed.post(f"/retry/{job['id']}", headers=headers))[0] == 200
    assert (await go.call("status-sync", f"/{job['id']}?wait=90000"))["retries"] == 1
