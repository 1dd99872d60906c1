"""What RunPod does not say: each guess has a knob, and each value of the knob does what its help says."""

import asyncio
import json
import re
from pathlib import Path

import aiohttp
import pytest

from llmpod.endpoint import Faults, Options
from llmpod.endpoint.cli import flag_of, flags
from tests.endpoint.conftest import serve
from tests.endpoint.test_openai import play
from tests.endpoint.test_records import Receiver
from tests.endpoint.test_worker_api import done, take

pytestmark = pytest.mark.process

PAGE = Path(__file__).resolve().parents[2] / "docs" / "endpoint.md"


def test_every_assumption_of_the_documentation_has_a_knob_and_every_knob_is_listed():
    tables = [part.partition("\n\n")[0] for part in PAGE.read_text().split("| question | answer here | knob |")[1:]]
    lines = [line for table in tables for line in table.splitlines()[2:]]
    knobs = [re.findall(r"`(--[a-z0-9-]+)`", line.rpartition(" | ")[2]) for line in lines]
    assert all(knobs), "each row names its knob"
    every = {flag_of(name): info.description or "" for model in (Options, Faults) for name, info in flags(model)}
    assumed = {flag for flag, help_text in every.items() if re.search(r"\((assumed|docs disagree)", help_text)}
    listed = {knob for row in knobs for knob in row}
    assert assumed <= listed <= set(every)


BAD_RESULTS = [b"{", b"[1]", b'{"output": NaN}', b'{"output": ' + b"[" * 300 + b"]" * 300 + b"}"]


@pytest.mark.parametrize("body", [*BAD_RESULTS, b'{"output": "' + b"x" * 200 + b'"}'])
@pytest.mark.parametrize("outcome", ["COMPLETED", "FAILED"])
async def test_a_result_that_cannot_be_taken_ends_its_job(outcome, body):
    limit = 100 if b"xxx" in body else 1000
    async with serve(fleet=False, bad_result_outcome=outcome, run_limit_bytes=limit) as client:
        job_id = await client.run({})
        await take(client)
        status, answer = await done(client, job_id, body)
        assert status == 400
        ended = (await client.get(f"/status/{job_id}"))[1]
        assert ended["status"] == outcome
        assert "output" not in ended
        assert ended.get("error") == (answer["error"] if outcome == "FAILED" else None)


async def test_nan_can_be_read_as_null():
    async with serve(fleet=False, nan_bodies="null") as client:
        job_id = await client.run({})
        await take(client)
        chunk = b'{"output": [-Infinity, "NaN"]}'
        assert (await client.call("POST", f"/job-stream/w1/{job_id}?gpu=x", data=chunk))[0] == 200
        assert (await client.get(f"/stream/{job_id}"))[1]["stream"] == [{"output": [None, "NaN"]}]
        assert (await done(client, job_id, b'{"output": {"a": NaN, "b": Infinity}}'))[0] == 200
        assert (await client.get(f"/status/{job_id}"))[1]["output"] == {"a": None, "b": None}
        job_id = await client.run({})
        await take(client)
        assert (await done(client, job_id, b'{"output": NaN'))[0] == 400
        assert (await client.post("/run", data=b'{"input": {"x": NaN}}'))[0] == 400, "a client's NaN stays refused"


S3 = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "http://127.0.0.1:1"}
SENT = {"webhookV2", "policy", "s3Config"}
HUB = {"delayTime", "executionTime", "error", "retries", "status"}


@pytest.mark.parametrize(
    ("fields", "beside"),
    [("input", set()), ("request", SENT), ("full", SENT | HUB)],
)
async def test_the_fields_a_worker_gets(fields, beside):
    async with serve(fleet=False, worker_fields=fields) as client:
        sent = {"webhookV2": "http://127.0.0.1:1/", "policy": {"ttl": 60_000}, "s3Config": S3}
        job_id = await client.run({"n": 1}, **sent)
        job = await take(client)
        assert set(job) == {"id", "input"} | beside
        assert (job["id"], job["input"]) == (job_id, {"n": 1})
        if fields == "full":
            assert (job["status"], job["retries"], job["error"]) == ("IN_PROGRESS", 0, "")


@pytest.mark.parametrize("name", ["IN_PROGRESS", "RUNNING"])
@pytest.mark.parametrize("shape", ["object", "list"])
async def test_the_name_of_a_running_job_and_the_shape_of_the_list(name, shape):
    async with serve(fleet=False, running_name=name, requests_shape=shape) as client:
        job_id = await client.run({})
        await take(client)
        assert (await client.get(f"/status/{job_id}"))[1]["status"] == name
        assert (await client.get(f"/status-sync/{job_id}?wait=1000"))[1]["status"] == name
        assert (await client.get(f"/stream/{job_id}?wait=1000"))[1] == {"status": name, "stream": []}
        listed = (await client.get("/requests"))[1]
        (row,) = listed if shape == "list" else listed["requests"]
        assert (row["id"], row["status"]) == (job_id, name)
        assert (await client.post(f"/cancel/{job_id}"))[1]["status"] == "CANCELLED"


async def test_the_text_of_an_execution_timeout():
    async with serve(fleet=False, timeout_error="too slow: {seconds} s, {not a field}") as client:
        job_id = await client.run({}, policy={"executionTimeout": 100})
        await take(client)
        assert (await client.end(job_id))["error"] == "too slow: 0.1 s, {not a field}"


@pytest.mark.parametrize(("rule", "expected"), [("all", {"a": 1}), ("list", '{"a":1}'), ("none", ['{"a":1}'])])
async def test_which_output_is_the_body_of_an_openai_answer(rule, expected):
    async with serve(fleet=False, openai_unwrap=rule) as client:
        call = asyncio.create_task(client.post("/openai/v1/embeddings", {"input": "x"}))
        await play(client, {"done": {"output": ['{"a":1}']}})
        assert await call == (200, expected)


EVENT, TOLD, DONE = 'data: {"n":1}\n\n', rb'data: {"error":.+}\n\n', rb"data: \[DONE\]\n\n"


@pytest.mark.parametrize(
    ("manner", "objects", "begins", "ends"),
    [
        ("event", "event", EVENT, TOLD),
        ("event-done", "event", EVENT, TOLD + DONE),
        ("end", "raw", '{"n":1}', b""),
        ("cut", "event", EVENT, None),
    ],
)
async def test_a_stream_whose_job_fails_ends_as_chosen(manner, objects, begins, ends):
    async with serve(fleet=False, openai_stream_failure=manner, openai_objects=objects) as client:
        url = client.endpoint.openai_url + "/completions"
        call = asyncio.create_task(client.session.post(url, json={"prompt": "x", "stream": True}))
        _, job = await client.get("/job-take/w1?gpu=x")
        await client.post(f"/job-stream/w1/{job['id']}?gpu=x", {"output": {"n": 1}})
        answer = await call
        assert (await answer.content.readany()).decode() == begins
        await done(client, job["id"], {"error": "broke"})
        if ends is None:
            with pytest.raises(aiohttp.ClientError):
                await answer.content.read()
            return
        assert re.fullmatch(ends, await answer.content.read())


@pytest.mark.parametrize(
    ("tells", "told"),
    [
        ("all", ["COMPLETED", "FAILED", "CANCELLED"]),
        ("not-cancelled", ["COMPLETED", "FAILED"]),
        ("completed", ["COMPLETED"]),
    ],
)
async def test_of_which_ends_a_webhook_is_told(tells, told):
    async with serve(fleet=False, webhook_tells=tells) as client, Receiver() as receiver:
        for result in ({"output": 1}, {"error": "no"}, None):
            job_id = await client.run({}, webhook=receiver.url)
            await take(client)
            await (done(client, job_id, result) if result else client.post(f"/cancel/{job_id}"))
        got = await receiver.received(len(told))
        assert [body["status"] for body in got] == told


async def test_what_a_webhook_gets_and_which_address_is_called():
    async with serve(fleet=False, webhook_body="output", webhook_v2=True) as client, Receiver() as receiver:
        job_id = await client.run({}, webhook=receiver.url, webhookV2=receiver.url)
        await take(client)
        await done(client, job_id, {"output": [1]})
        assert await receiver.received(2) == [{"output": [1]}] * 2


async def test_webhook_v2_is_not_called_unless_asked_for(bare):
    async with Receiver() as receiver:
        job_id = await bare.run({}, webhookV2=receiver.url)
        assert (await take(bare))["webhookV2"] == receiver.url
        await done(bare, job_id, {"output": json.dumps(1)})
        assert await receiver.received(0) == []
