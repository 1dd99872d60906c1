"""Who may come in: keys, other web sites, rebound names; and what must never be seen."""

import asyncio

import pytest

from tests.endpoint.conftest import serve

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
async def locked():
    async with serve(fleet=False, api_key="s3cret-key") as client:
        yield client


CLIENT_ROUTES = [
    ("POST", "/run"),
    ("POST", "/runsync"),
    ("GET", "/status/x"),
    ("POST", "/cancel/x"),
    ("POST", "/purge-queue"),
    ("GET", "/health"),
    ("GET", "/requests"),
    ("GET", "/openai/v1/models"),
    ("GET", "/job-take/w?gpu=x"),
    ("POST", "/job-done/w/j?gpu=x"),
    ("GET", "/ping/w?gpu=x"),
    ("GET", "{root}/metrics"),
    ("GET", "{root}/control/state"),
    ("POST", "{root}/control/faults"),
]


def at(client, path):
    return path.replace("{root}", client.endpoint.base_url.removesuffix("/v2"))


@pytest.mark.parametrize(("method", "path"), CLIENT_ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "s3cret", "Bearer s3cret-key2", "Bearer ", "Bearer \u00fc"])
async def test_without_the_key_every_route_is_401(locked, method, path, header):
    headers = {} if header is None else {"Authorization": header}
    status, body = await locked.call(method, at(locked, path), headers=headers, data=b"{}")
    assert status == 401
    assert set(body) == {"error"}
    assert not locked.endpoint.store.jobs
    assert not locked.endpoint.broker.workers


@pytest.mark.parametrize("header", ["Bearer s3cret-key", "s3cret-key"])
async def test_the_key_is_accepted_as_bearer_and_bare(locked, header):
    assert (await locked.get("/health", headers={"Authorization": header}))[0] == 200


async def test_a_key_of_any_bytes_is_401(locked):
    """The client library would not send these; a socket does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", locked.endpoint.port)
    writer.write(b"GET /v2/local/health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_a_worker_has_a_key_of_its_own_that_opens_no_client_route(locked):
    key = locked.endpoint.worker_env("w9")["RUNPOD_AI_API_KEY"]
    headers = {"Authorization": key}
    assert key != "s3cret-key"
    assert (await locked.get("/ping/w9?gpu=x", headers=headers))[0] == 200
    assert (await locked.post("/job-done/w9/j?gpu=x", {}, headers=headers))[0] == 404
    assert (await locked.get("/health", headers=headers))[0] == 401


async def test_the_key_reaches_neither_a_worker_s_environment_nor_a_log(locked, monkeypatch):
    monkeypatch.setenv("LLMPOD_ENDPOINT_API_KEY", "s3cret-key")
    from llmpod.endpoint.environ import inherited_environment
    from llmpod.endpoint.options import Options

    assert Options().api_key == "s3cret-key"
    assert "s3cret-key" not in repr(Options())
    assert "s3cret-key" not in str(inherited_environment())
    assert "s3cret-key" not in str(locked.endpoint.worker_env("w"))
    assert "s3cret-key" not in str(locked.endpoint.control.state())


@pytest.mark.parametrize("path", ["/run", "{root}/control/faults", "{root}/control/scale"])
async def test_another_web_site_cannot_drive_it(bare, path):
    """A page can send a POST with a text body to any address without asking first; its Origin gives it away."""
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    status, body = await bare.call("POST", at(bare, path), headers=headers, data=b'{"input":{},"kill_every_s":1}')
    assert status == 403
    assert "other web sites" in body["error"]
    assert not bare.endpoint.store.jobs
    assert bare.endpoint.broker.faults.kill_every_s == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_an_image_on_another_web_site_cannot_take_a_job(bare, site):
    job_id = await bare.run({})
    assert (await bare.get("/job-take/w?gpu=x", headers={"Sec-Fetch-Site": site}))[0] == 403
    assert bare.endpoint.job(job_id).state == "IN_QUEUE"


REBOUND = ["evil.example", "127.0.0.1.evil.example:8000", "10.1.2.3"]
MISLEADING = ["evil.example@127.0.0.1", "127.0.0.1@evil.example", "[::1", "127.0.0.1:x", "\xff"]


@pytest.mark.parametrize("host", REBOUND + MISLEADING)
async def test_a_name_rebound_to_loopback_is_refused(bare, host):
    for path in ("/health", "{root}/control/state", "{root}/metrics"):
        assert (await bare.get(at(bare, path), headers={"Host": host}))[0] == 403
    assert (await bare.get("/health", headers={"Host": f"localhost:{bare.endpoint.port}"}))[0] == 200


@pytest.mark.parametrize("host", ["LOCALHOST", "[::1]:80", "127.0.0.1:"])
async def test_loopback_has_many_names(bare, host):
    assert (await bare.get("/health", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize("origin", ["null", "http://[::1", "http://127.0.0.1@evil.example", ""])
async def test_an_origin_that_is_none_is_refused(bare, origin):
    assert (await bare.get("/health", headers={"Origin": origin}))[0] == 403


async def test_the_page_s_own_origin_is_welcome(bare):
    origin = bare.endpoint.base_url.removesuffix("/v2")
    assert (await bare.post("/run", {"input": {}}, headers={"Origin": origin}))[0] == 200


async def test_the_page_has_a_content_policy_and_no_foreign_address(bare):
    async with bare.session.get(at(bare, "{root}/")) as response:
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "//" not in (await response.text()).replace("// Everything", "").split("<body>")[0]


async def test_no_traceback_reaches_a_client_when_the_endpoint_itself_is_broken(bare):
    def broken(*_, **__):
        raise RuntimeError("secret detail")

    bare.endpoint.store.submit = broken
    status, body = await bare.post("/run", {"input": {}})
    assert status == 500
    assert body == {"error": "internal error"}
