"""The clients of docs/clients.md, run as they stand there: answers, concurrency, retries, patience, streams, cancel."""

import asyncio
import json
import os
import re
import sys
import time
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

pytestmark = pytest.mark.process

GUIDE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()


def block(language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return found[0]


def failing(tmp_path, **failure):
    """A job that fails with that error object, and notes each attempt."""
    return {"note": str(tmp_path / "attempts"), "error": json.dumps({"code": "overloaded", "message": "m", **failure})}


def attempts(tmp_path):
    return len((tmp_path / "attempts").read_text().splitlines())


def environment(client):
    return {"ENDPOINT_URL": client.endpoint.url, "RUNPOD_API_KEY": "test-key", "PATH": os.environ["PATH"]}


async def output_of(client, *command):
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(client), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


@pytest.fixture
def guide(monkeypatch):
    """The Python client's names, with an endpoint of the test's behind them."""

    def load(client):
        for name, value in environment(client).items():
            monkeypatch.setenv(name, value)
        names = {"__name__": "guide"}
        exec(compile(block("python"), "docs/clients.md", "exec"), names)
        return names

    return load


async def test_python_answers_and_keeps_its_concurrency(echo, guide):
    client = guide(echo)
    client["AT_ONCE"] = asyncio.Semaphore(2)
    began = time.monotonic()
    async with aiohttp.ClientSession() as session:
        jobs = (client["run"](session, {"echo": number, "sleep_ms": 100}) for number in range(6))
        answers = await asyncio.gather(*jobs)
    assert [answer["echo"] for answer in answers] == list(range(6))
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(("retryable", "tries"), [(True, 4), (False, 1)])
async def test_python_retries_what_says_that_it_can_be_retried(echo, guide, tmp_path, retryable, tries):
    client = guide(echo)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(client["JobFailed"]) as caught:
            await client["run"](session, failing(tmp_path, retryable=retryable, details={"retry_after_s": 0.05}))
    assert caught.value.failure["code"] == "overloaded"
    assert attempts(tmp_path) == tries


async def test_python_loses_patience_and_cancels(echo, guide):
    client = guide(echo)
    client["PATIENCE_S"] = 0.5
    async with aiohttp.ClientSession() as session:
        job_id = await client["submit"](session, {"sleep_ms": 60_000})
        with pytest.raises(TimeoutError):
            await client["wait_for"](session, job_id)
    await echo.until(job_id, "CANCELLED")


async def test_python_submits_again_when_it_was_refused_and_no_longer_than_it_should(guide, echo):
    client = guide(echo)
    asked, pauses = [], []

    async def sleep(seconds):
        pauses.append(seconds)

    async def call(_session, _method, path, _body=None):
        asked.append(path)
        if len(asked) < 4:
            raise aiohttp.ClientResponseError(None, (), status=[429, 503, 504][len(asked) - 1])
        return {"id": "a"}

    client["call"] = call
    client["asyncio"] = SimpleNamespace(**vars(asyncio) | {"sleep": sleep})  # the client's alone: the endpoint waits
    assert await client["submit"](None, {}) == "a"
    assert [0.5 * 2**n <= pause <= 1.5 * 2**n for n, pause in enumerate(pauses)] == [True] * 3
    asked.clear()

    async def refuse(_session, _method, path, _body=None):
        asked.append(path)
        raise aiohttp.ClientResponseError(None, (), status=401)

    client["call"] = refuse
    with pytest.raises(aiohttp.ClientResponseError):
        await client["submit"](None, {})
    assert len(asked) == 1


async def test_python_streams_and_cancels_what_it_leaves(streaming, guide):
    client = guide(streaming)
    async with aiohttp.ClientSession() as session:
        chunks = [chunk async for chunk in client["stream"](session, {"echo": "a", "chunks": 3})]
        assert [chunk["n"] for chunk in chunks] == [0, 1, 2]
        with pytest.raises(client["JobFailed"]):
            assert [chunk["n"] async for chunk in client["stream"](session, {"chunks": 3, "fail_at": 1})] == [0]
        async with aclosing(client["stream"](session, {"chunks": 1000, "pause_ms": 100})) as left:
            async for _ in left:
                break
    _, listed = await streaming.get("/requests")
    rows = listed["requests"] if isinstance(listed, dict) else listed
    await streaming.until(rows[0]["id"], "CANCELLED")


async def test_python_runs_as_a_program(streaming):
    out = await output_of(streaming, sys.executable, "-c", block("python"))
    assert len(out) == 3 + 3


JAVASCRIPT = """
const told = {};
told.answers = await Promise.all([0, 1].map((echo) => run({ echo, chunks: 1 })));
told.chunks = [];
for await (const chunk of stream({ echo: "a", chunks: 3 })) told.chunks.push(chunk.n);
for await (const chunk of stream({ chunks: 1000, pause_ms: 100 })) break;
let most = 0, now = 0;
await Promise.all(Array.from({ length: 50 }, () => limited(async () => {
  most = Math.max(most, (now += 1));
  await sleep(1);
  now -= 1;
})));
told.most = most;
let tries = 0;
globalThis.fetch = async (url, options) => {
  if (url.endsWith("/run")) tries += 1;
  const failure = { code: "overloaded", message: "m", retryable: true, details: { retry_after_s: 0.01 } };
  const body = url.endsWith("/run") ? { id: "a" } : { status: "FAILED", error: JSON.stringify(failure) };
  return { ok: true, json: async () => body };
};
await run({}).catch((error) => { told.code = error.failure.code; });
told.tries = tries;
console.log(JSON.stringify(told));
"""


async def test_javascript(streaming, tmp_path):
    script = tmp_path / "client.mjs"
    script.write_text(block("js"))
    assert len(await output_of(streaming, "node", str(script))) == 2 + 3
    assert block("js").endswith("await main();\n")
    script.write_text(block("js").removesuffix("await main();\n") + JAVASCRIPT)
    (line,) = await output_of(streaming, "node", str(script))
    told = json.loads(line)
    assert [len(answer) for answer in told["answers"]] == [1, 1]
    assert told["chunks"] == [0, 1, 2]
    assert (told["most"], told["code"], told["tries"]) == (16, "overloaded", 4)


async def test_curl(streaming, tmp_path):
    script = tmp_path / "client.sh"
    script.write_text("set -euo pipefail\n" + block("bash"))
    out = "".join(await output_of(streaming, "bash", str(script)))
    assert out.count('"status":"COMPLETED"') >= 2
    assert '"stream":[' in out
