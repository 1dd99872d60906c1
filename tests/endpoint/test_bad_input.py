"""What a caller gets wrong: the documented code, a JSON error, and nothing changed."""

import asyncio
import json
import zlib

import pytest

from llmpod.endpoint.api.rate_limit import parse_request
from llmpod.protocol import RUN_LIMIT_BYTES, RUNSYNC_LIMIT_BYTES

pytestmark = pytest.mark.process

RUN_ERRORS = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"\xff\xfe", "not valid JSON"),
    (b'{"input": {"x": NaN}}', "not valid JSON"),
    (b'{"input": {"x": Infinity}}', "not valid JSON"),
    (b'{"input": {"x": "\\ud800"}}', "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b'"text"', "must be a JSON object"),
    (b"{}", "input"),
    (b'{"input": "text"}', "input"),
    (b'{"input": null}', "input"),
    (b'{"input": [1]}', "input"),
    (b'{"input": {}, "webhook": 5}', "webhook"),
    (b'{"input": {}, "webhook": "file:///etc/passwd"}', "webhook"),
    (b'{"input": {}, "webhookV2": "x"}', "webhookV2"),
    (b'{"input": {}, "policy": []}', "policy"),
    (b'{"input": {}, "policy": {"ttl": "1h"}}', "policy.ttl"),
    (b'{"input": {}, "policy": {"ttl": -1}}', "policy.ttl"),
    (b'{"input": {}, "policy": {"executionTimeout": 1.5}}', "policy.executionTimeout"),
    (b'{"input": {}, "policy": {"lowPriority": "yes"}}', "policy.lowPriority"),
    (b'{"input": {}, "s3Config": "x"}', "s3Config"),
    (b'{"input":' + b'{"a":' * 2000 + b"1" + b"}" * 2001, "JSON"),
]


@pytest.mark.parametrize("operation", ["/run", "/runsync"])
@pytest.mark.parametrize(("body", "told"), RUN_ERRORS)
async def test_a_bad_request_is_400_and_submits_nothing(bare, operation, body, told):
    status, answer = await bare.call("POST", operation, data=body)
    assert status == 400
    assert told in answer["error"]
    assert "Traceback" not in answer["error"]
    assert not bare.endpoint.store.jobs


@pytest.mark.parametrize(
    ("policy", "told"),
    [({"executionTimeout": 4999}, "executionTimeout"), ({"ttl": 9999}, "ttl"), ({"ttl": 604_800_001}, "ttl")],
)
async def test_a_policy_outside_runpod_s_bounds_is_refused(policy, told):
    from llmpod.endpoint.errors import ApiError

    body = json.dumps({"input": {}, "policy": policy}).encode()
    with pytest.raises(ApiError, match=told) as caught:
        parse_request(body, any_input=False, bounds=True)
    assert caught.value.status == 400
    assert parse_request(body, any_input=False, bounds=False)


@pytest.mark.parametrize(("operation", "limit"), [("/run", RUN_LIMIT_BYTES), ("/runsync", RUNSYNC_LIMIT_BYTES)])
async def test_an_oversized_body_is_400_declared_or_not(bare, operation, limit):
    async def chunks():
        for _ in range(limit // 2**20 + 1):
            yield b"x" * 2**20

    for data in (b"x" * (limit + 1), chunks()):
        status, answer = await bare.call("POST", operation, data=data)
        assert status == 400
        assert "limit" in answer["error"]
    assert not bare.endpoint.store.jobs


async def test_a_body_at_the_limit_is_taken(bare):
    empty = len(json.dumps({"input": {"x": ""}}))
    body = json.dumps({"input": {"x": "y" * (RUN_LIMIT_BYTES - empty)}}).encode()
    assert len(body) == RUN_LIMIT_BYTES == 10_000_000
    assert (await bare.call("POST", "/run", data=body))[0] == 200


@pytest.mark.parametrize("operation", ["status", "status-sync", "stream", "cancel", "retry"])
async def test_an_unknown_job_is_404(bare, operation):
    status, answer = await bare.post(f"/{operation}/nope")
    assert status == 404
    assert "nope" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/run"),
        ("GET", "/runsync"),
        ("DELETE", "/status/x"),
        ("GET", "/cancel/x"),
        ("GET", "/retry/x"),
        ("GET", "/purge-queue"),
        ("POST", "/health"),
        ("POST", "/requests"),
        ("POST", "/job-take/w"),
        ("GET", "/job-done/w/j"),
        ("PUT", "/openai/v1/models"),
    ],
)
async def test_a_wrong_method_is_405(bare, method, path):
    status, answer = await bare.call(method, path)
    assert status == 405
    assert method in answer["error"]


@pytest.mark.parametrize("path", ["", "/", "/nothing", "/status", "/status/", "/status/a/b", "/run/x", "/job-done/w"])
async def test_an_unknown_route_is_404(bare, path):
    status, answer = await bare.get(path)
    assert status == 404
    assert set(answer) == {"error"}


async def test_an_unknown_endpoint_is_404(bare):
    status, answer = await bare.post(bare.endpoint.base_url + "/other/run", {"input": {}})
    assert status == 404
    assert "other" in answer["error"]


NO_NUMBERS = ["", "soon", "1.5", "1e3", "²", "٣", "9" * 400, "9" * 5000]


@pytest.mark.parametrize("text", NO_NUMBERS)
async def test_a_wait_or_ttl_that_is_no_number_is_400(bare, text):
    assert (await bare.post("/runsync", {"input": {}}, params={"wait": text}))[0] == 400
    assert not bare.endpoint.store.jobs
    job_id = await bare.run({})
    for ttl in (text, "-1"):
        assert (await bare.get(f"/status/{job_id}", params={"ttl": ttl}))[0] == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_not_what_its_encoding_says_is_400(bare, encoding):
    status, answer = await bare.call("POST", "/run", data=b"not so", headers={"Content-Encoding": encoding})
    assert status == 400
    assert encoding in answer["error"]
    assert not bare.endpoint.store.jobs


async def test_a_small_body_that_unpacks_to_a_huge_one_is_400(bare):
    bomb = zlib.compress(b'{"input":{"x":"' + b"x" * 50_000_000 + b'"}}')
    status, answer = await bare.call("POST", "/run", data=bomb, headers={"Content-Encoding": "deflate"})
    assert status == 400
    assert "limit" in answer["error"]


async def test_what_is_no_http_is_one_line_for_the_person_and_no_traceback(bare, monkeypatch):
    said = []
    monkeypatch.setattr(bare.endpoint.console, "_add", lambda source, line, style: said.append(line))
    reader, writer = await asyncio.open_connection("127.0.0.1", bare.endpoint.port)
    writer.write(b"GET / HTTP/1.1\r\nContent-Length: -3\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    assert len(said) == 1
    assert "Content-Length" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("size", ["0", "-1", "many", "999999999", "²"])
async def test_a_senseless_batch_size_is_400(bare, size):
    assert (await bare.get(f"/job-take-batch/w1?gpu=x&batch_size={size}"))[0] == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b"3"])
async def test_a_bad_openai_body_is_400(bare, body):
    assert (await bare.call("POST", "/openai/v1/chat/completions", data=body))[0] == 400
    assert not bare.endpoint.store.jobs
