"""What a caller gets wrong: the documented code, a JSON error, and nothing changed."""

import json

import pytest

from llmpod.endpoint.limits import parse_request

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


@pytest.mark.parametrize(("operation", "limit"), [("/run", 10 * 2**20), ("/runsync", 20 * 2**20)])
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
    body = json.dumps({"input": {"x": "y" * (10 * 2**20 - empty)}}).encode()
    assert len(body) == 10 * 2**20
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


@pytest.mark.parametrize("query", ["wait=soon", "wait="])
async def test_a_wait_that_is_no_number_is_400(bare, query):
    assert (await bare.post(f"/runsync?{query}", {"input": {}}))[0] == 400
    assert not bare.endpoint.store.jobs


@pytest.mark.parametrize("size", ["0", "-1", "many", "999999999"])
async def test_a_senseless_batch_size_is_400(bare, size):
    assert (await bare.get(f"/job-take-batch/w1?gpu=x&batch_size={size}"))[0] == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b"3"])
async def test_a_bad_openai_body_is_400(bare, body):
    assert (await bare.call("POST", "/openai/v1/chat/completions", data=body))[0] == 400
    assert not bare.endpoint.store.jobs
