"""The load balancer with real worker processes: requests, streams, health checks, scaling, failures."""

import asyncio
import gzip
import socket
import sys
import time
from contextlib import asynccontextmanager
from itertools import pairwise

import aiohttp
import orjson
import pytest

from llmpod.endpoint import LoadBalancer, Options
from llmpod.endpoint.balancer.routing import WORKER_ID
from tests.endpoint.conftest import WORKERS
from tests.endpoint.test_fleet import alive, eventually

pytestmark = pytest.mark.process

HTTP_WORKER = [sys.executable, "-u", str(WORKERS / "http_worker.py")]
CRASHER = [sys.executable, "-c", "import sys; sys.exit('no module named brain')"]
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
LIMIT = 2_000_000


class Client:
    """A load balancer and plain HTTP against it: every call gives (status, headers, body)."""

    def __init__(self, endpoint, session):
        self.endpoint = endpoint
        self.session = session

    async def call(self, method, path, *, worker=None, **kwargs):
        headers = dict(kwargs.pop("headers", {}))
        if worker:
            headers[WORKER_ID] = f"strict {worker}"
        url = path if path.startswith("http") else self.endpoint.url + path
        async with self.session.request(method, url, headers=headers, allow_redirects=False, **kwargs) as response:
            body = await response.read()
            return response.status, response.headers, orjson.loads(body) if body[:1] in (b"{", b"[") else body

    async def get(self, path, **kwargs):
        return await self.call("GET", path, **kwargs)

    async def control(self, method, path, **kwargs):
        return (await self.call(method, self.endpoint.page_url + path, **kwargs))[2]

    async def stream(self, path, **kwargs):
        """An open response whose first block was read."""
        response = await self.session.get(self.endpoint.url + path, **kwargs)
        assert (await response.content.readany()) == b"data: 1\n\n"
        return response


@asynccontextmanager
async def balance(**changes):
    environment = changes.pop("worker_variables", {})
    defaults = {
        "kind": "load-balancer", "port": 0, "command": HTTP_WORKER, "workers_min": 1, "workers_max": 1,
        "health_period_s": 0.05, "scale_period_s": 0.05, "grace_s": 30, "journal": "", "console": False,
        "payload_limit_bytes": LIMIT,
    }  # fmt: skip
    options = Options(**(defaults | changes))
    options = options.model_copy(update={"env": options.env | environment})
    connector = aiohttp.TCPConnector(limit=0)
    async with LoadBalancer(options) as endpoint, aiohttp.ClientSession(connector=connector) as session:
        if options.workers_min and options.command == HTTP_WORKER:
            await endpoint.ready(options.workers_min)
        yield Client(endpoint, session)


@pytest.fixture(scope="module")
async def pair():
    """Two workers, each with a health port of its own."""
    async with balance(workers_min=2, workers_max=2, health_port="own") as client:
        yield client


async def test_a_request_arrives_as_it_was_sent_and_so_does_the_answer(pair):
    target = "/v1/%7Euser/a%2Fb/./c?x=%20&y=1&y=2"
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.endpoint.port)
    writer.write(
        f"PATCH {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-One: 1\r\nX-One: 2\r\n"
        "Connection: close, X-Hop\r\nX-Hop: 1\r\nAuthorization: Bearer s3cret\r\n"
        "Content-Length: 5\r\n\r\nhello".encode()
    )
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200")
    assert head.lower().count(WORKER_ID.lower().encode()) == 1
    assert b"X-Twice: a" in head
    assert b"timeout=5" not in head, "Keep-Alive is the worker connection's"
    said = orjson.loads(body)
    assert (said["method"], said["path"], said["body"]) == ("PATCH", target, "hello")
    headers = [(name.lower(), value) for name, value in said["headers"]]
    assert [value for name, value in headers if name == "x-one"] == ["1", "2"]
    names = {name for name, _ in headers}
    assert "x-hop" not in names
    assert "authorization" not in names, "the header has the endpoint's key"
    assert not names & {"user-agent", "accept", "accept-encoding", "content-type"}, "nothing is added"


async def test_encoded_bodies_redirects_and_empty_answers_pass_untouched(pair):
    packed = gzip.compress(b"hello")
    status, _, said = await pair.call("POST", "/x", data=packed, headers={"Content-Encoding": "gzip"})
    assert (status, said["body"].encode("latin-1")) == (200, packed)
    for code in (204, 301, 404, 503):
        status, headers, _ = await pair.get(f"/answer?status={code}")
        assert (status, headers["Location"]) == (code, "/elsewhere")
        assert WORKER_ID in headers
    status, headers, body = await pair.call("HEAD", "/bytes?n=1000")
    assert (status, headers["Content-Length"], body) == (200, "1000", b"")
    assert (await pair.get("/ping"))[0] == 200, "a path like any other on PORT"


async def test_a_stream_passes_as_it_comes_and_the_next_requests_go_to_the_other_worker(pair):
    response = await pair.stream("/stream?gate=pass")
    busy = response.headers[WORKER_ID]
    others = {(await pair.get("/count"))[1][WORKER_ID] for _ in range(3)}
    assert busy not in others
    state = await pair.control("GET", "control/state")
    assert (state["in_flight"], {row["id"]: row["in_flight"] for row in state["workers"]}[busy]) == (1, 1)
    assert await pair.get("/open?gate=pass", worker=busy)
    assert await response.read() == b"data: 2\n\n"


async def test_a_client_that_leaves_closes_its_request_on_the_worker(pair):
    response = await pair.stream("/stream?gate=never")
    worker = response.headers[WORKER_ID]
    before = (await pair.get("/count", worker=worker))[2].get("left", 0)
    response.close()
    async with asyncio.timeout(5):
        while (await pair.get("/count", worker=worker))[2].get("left", 0) == before:
            await asyncio.sleep(0.02)
    await eventually(lambda: pair.endpoint.pool.in_flight == 0)
    assert pair.endpoint.traffic.totals["client left"] >= 1


async def test_equal_load_goes_round(pair):
    ids = [(await pair.get("/count"))[1][WORKER_ID] for _ in range(6)]
    assert len(set(ids)) == 2
    assert all(one != other for one, other in pairwise(ids))


async def test_affinity_is_soft_strict_or_gone(pair):
    (first, second) = await pair.endpoint.ready(2)
    for asked, expected in ((first, first), (second, second), (f"strict {first}", first), ("nobody", None)):
        _, headers, _ = await pair.get("/count", headers={WORKER_ID: asked})
        assert expected in (None, headers[WORKER_ID])
    status, _, body = await pair.get("/count", headers={WORKER_ID: "strict nobody"})
    assert (status, body) == (404, {"error": "affinity_worker_gone"})


async def test_bodies_up_to_the_limit_pass_and_larger_ones_do_not(pair):
    async def blocks(size):
        for start in range(0, size, 65536):
            yield b"x" * min(65536, size - start)

    assert (await pair.call("POST", "/length", data=b"x" * LIMIT))[2] == {"bytes": LIMIT}
    assert (await pair.call("POST", "/length", data=blocks(LIMIT)))[2] == {"bytes": LIMIT}
    assert len((await pair.get(f"/bytes?n={LIMIT}"))[2]) == LIMIT
    for body in (b"x" * (LIMIT + 1), blocks(LIMIT + 1)):
        status, _, said = await pair.call("POST", "/length", data=body)
        assert status == 413
        assert "above the limit of 2000000 bytes" in said["error"]
    status, _, said = await pair.get(f"/bytes?n={LIMIT + 1}")
    assert status == 502
    assert "above the limit" in said["error"]
    with pytest.raises(aiohttp.ClientPayloadError):
        await pair.get(f"/bytes?n={LIMIT + 1}&chunked=1")
    await eventually(lambda: pair.endpoint.pool.in_flight == 0)


async def test_many_slow_readers_hold_up_nobody(pair):
    connections = []
    for _ in range(40):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel reads it all
        sock.connect(("127.0.0.1", pair.endpoint.port))
        request = f"GET /bytes?n={LIMIT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        sock.sendall(4 * request)  # one answer may fit into what the kernel buffers for a sender
        connections.append(sock)
    await eventually(lambda: pair.endpoint.pool.in_flight == 40)
    async with asyncio.timeout(30):  # those connections are never read
        assert {(await pair.get("/count"))[0] for _ in range(20)} == {200}
    for sock in connections:
        sock.close()
    await eventually(lambda: pair.endpoint.pool.in_flight == 0)


async def test_what_is_not_http_is_refused_and_harms_nobody(pair):
    for sent in (
        b"\x16\x03\x01garbage\r\n\r\n",
        b"POST /length HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.endpoint.port)
        writer.write(sent)
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    for target, code in (("OPTIONS *", b"404"), ("CONNECT a:1", b"4"), ("GET http://elsewhere.example/count", b"403")):
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.endpoint.port)
        writer.write(f"{target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert (await reader.readline()).split()[1].startswith(code), target
        writer.close()
    status, _, body = await pair.get("/count", headers={"Origin": "http://evil.example"})
    assert (status, body) == (403, {"error": "requests from other web sites are refused"})
    assert (await pair.get("/count"))[0] == 200


async def test_a_websocket_passes_both_ways_and_closes_with_the_worker_s_code(pair):
    url = pair.endpoint.url + "/ws"
    async with pair.session.ws_connect(url, protocols=("other", "chat")) as socket:
        assert socket.protocol == "chat"
        await socket.send_str("hello")
        assert (await socket.receive_str()) == "HELLO"
        await socket.send_bytes(b"abc")
        assert (await socket.receive_bytes()) == b"cba"
        await socket.send_str("bye")
        await socket.receive()
        assert socket.close_code == 4001
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await pair.session.ws_connect(pair.endpoint.url + "/answer?status=418")
    assert refused.value.status == 418
    await eventually(lambda: pair.endpoint.pool.in_flight == 0)


async def test_an_unhealthy_worker_gets_no_requests_until_it_is_well_again(pair):
    (first, second) = await pair.endpoint.ready(2)
    await pair.get("/set-ping?status=503", worker=first)
    await eventually(lambda: pair.endpoint.worker(first).state == "unhealthy")
    assert {(await pair.get("/count"))[1][WORKER_ID] for _ in range(3)} == {second}
    waiting = asyncio.create_task(pair.get("/count", worker=first))
    # Only the worker itself can say that it is well, and it is not routed to.
    port = pair.endpoint.worker(first).port
    assert (await pair.get(f"http://127.0.0.1:{port}/set-ping?status=200"))[0] == 200
    assert (await waiting)[1][WORKER_ID] == first
    assert pair.endpoint.worker(first).state in ("idle", "running")


async def test_a_worker_killed_in_mid_stream_cuts_its_own_streams_only(pair):
    streams = [await pair.stream("/stream?gate=kill") for _ in range(2)]
    (victim, other) = (stream.headers[WORKER_ID] for stream in streams)
    assert victim != other
    pid = (await pair.get("/count", worker=victim))[2]["pid"]
    assert pair.endpoint.kill_worker(victim)
    with pytest.raises(aiohttp.ClientPayloadError):
        await streams[0].read()
    await eventually(lambda: not alive(pid))
    await pair.get("/open?gate=kill", worker=other)
    assert await streams[1].read() == b"data: 2\n\n"
    await eventually(lambda: pair.endpoint.worker(victim).state == "dead")
    assert victim not in await pair.endpoint.ready(2), "another worker takes its place"
    assert pair.endpoint.traffic.totals["worker failed"] >= 1


async def test_a_worker_that_dies_before_it_answers_is_a_502(pair):
    ids = await pair.endpoint.ready(2)
    status, _, body = await pair.get("/leave", worker=ids[0])
    assert status == 502
    assert body["error"].startswith("worker ")
    assert "Traceback" not in body["error"]
    await eventually(lambda: pair.endpoint.worker(ids[0]).state == "dead")
    await pair.endpoint.ready(2)


async def test_a_worker_that_is_stopped_finishes_what_it_has_and_gets_nothing_more(pair):
    (first, _) = await pair.endpoint.ready(2)
    held = asyncio.create_task(pair.get("/hold?gate=stop", worker=first))
    await eventually(lambda: pair.endpoint.worker(first).in_flight == 1)
    await pair.control("POST", f"control/workers/{first}/stop")
    others = {(await pair.get("/count"))[1][WORKER_ID] for _ in range(3)}
    assert first not in others
    assert (await held)[0] == 200, "it has its grace period to answer"
    await eventually(lambda: pair.endpoint.worker(first).state == "dead")
    assert pair.endpoint.worker(first).ending == "stopped"
    await pair.endpoint.ready(2)


async def test_the_page_s_port_has_state_metrics_health_and_nothing_of_the_workers(pair):
    await pair.endpoint.ready(2)
    await pair.get("/secret-path?key=hidden")
    state = await pair.control("GET", "control/state?after=0")
    assert "hidden" not in str(state)
    assert state["requests"][0] | {"wait_ms": 0, "first_byte_ms": 0, "total_ms": 0, "at": 0} == {
        "number": state["requests"][0]["number"], "at": 0, "method": "GET", "path": "/secret-path", "status": 200,
        "worker_id": state["requests"][0]["worker_id"], "wait_ms": 0, "first_byte_ms": 0, "total_ms": 0, "bytes_in": 0,
        "bytes_out": state["requests"][0]["bytes_out"], "ending": "answered",
    }  # fmt: skip
    assert [row["health"] for row in state["workers"] if row["ending"] is None] == ["healthy", "healthy"]
    health = await pair.control("GET", "v2/local/health")
    assert (health["workers"]["ready"], health["jobs"]["inProgress"]) == (2, 0)
    assert b"llmpod_balancer_requests_total" in await pair.control("GET", "metrics")
    assert b"<title>llmpod load balancer" in await pair.control("GET", "")
    assert "workers are on port" in (await pair.control("GET", "v1/models"))["error"]


async def test_a_cold_start_is_waited_for_and_an_idle_worker_leaves():
    async with balance(
        workers_min=0, idle_timeout_s=0.3, worker_variables={"START_S": "0.1", "INIT_S": "0.2"}
    ) as client:
        status, headers, _ = await client.get("/count")
        assert status == 200
        worker = client.endpoint.worker(headers[WORKER_ID])
        assert 0 < worker.cold_start_ms < 5000
        row = client.endpoint.traffic.ended.kept[0]
        assert row.wait_ms > 300
        await eventually(lambda: worker.state == "dead")
        assert worker.ending == "stopped"


async def test_requests_in_flight_start_workers_up_to_the_most():
    async with balance(workers_min=0, workers_max=2, scaler_value=1, worker_capacity=1, waiting_max=5) as client:
        held = [asyncio.create_task(client.get("/hold?gate=all")) for _ in range(5)]
        await eventually(lambda: client.endpoint.pool.in_flight == 2)
        assert client.endpoint.fleet.starts == 2
        assert len(client.endpoint.pool.waiting) == 3
        more = [asyncio.create_task(client.get("/count")) for _ in range(3)]
        done, _ = await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result()[0] for task in done} == {429}
        for worker in list(client.endpoint.pool.workers.values()):
            await client.get(f"http://127.0.0.1:{worker.port}/open?gate=all")
        assert {(await task)[0] for task in held} == {200}


async def test_a_worker_that_is_given_in_the_moment_in_which_the_wait_ends_is_not_lost():
    async with balance(worker_capacity=1, worker_wait_s=0.2) as client:
        pool = client.endpoint.pool
        worker = await pool.acquire(None)
        waiting = asyncio.create_task(pool.acquire(None))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.1, lambda: pool.release(worker, answered=True))
        time.sleep(0.4)  # noqa: ASYNC251 - both are due at once
        assert await waiting is worker
        assert not pool.waiting
        pool.release(worker, answered=True)
        assert pool.in_flight == 0


async def test_requests_without_a_worker_are_answered_when_the_endpoint_stops():
    async with balance(worker_capacity=1) as client:
        held = asyncio.create_task(client.get("/hold?gate=stop"))
        await eventually(lambda: client.endpoint.pool.in_flight == 1)
        waiting = asyncio.create_task(client.get("/count"))
        await eventually(lambda: client.endpoint.pool.waiting)
        closing = asyncio.create_task(client.endpoint.close(graceful=True))
        refused = (503, {"error": "the endpoint stops"})
        assert (await waiting)[::2] == refused
        assert (await client.get("/count"))[::2] == refused
        assert (await held)[0] == 200, "the worker ends what it has"
        await closing


async def test_a_request_that_takes_too_long_is_ended_with_its_worker_unharmed():
    async with balance(request_timeout_s=0.3) as client:
        status, _, body = await client.get("/hold?gate=never")
        assert (status, body) == (524, {"error": "no answer within 0.3 s"})
        response = await client.stream("/stream?gate=never")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
        status, headers, said = await client.get("/count")
        assert (status, said["left"]) == (200, 1)
        assert client.endpoint.traffic.totals["timed out"] == 2
        # Faults: refused, dropped, and a health check that fails.
        client.endpoint.set_faults(faults=[{"operation": "http", "outcome": 503, "probability": 1}])
        assert (await client.get("/count"))[0] == 503
        client.endpoint.set_faults(faults=[{"operation": "http", "outcome": "drop", "probability": 1}])
        with pytest.raises(aiohttp.ClientError):
            await client.get("/count")
        client.endpoint.set_faults(faults=[{"operation": "ping", "outcome": "drop", "probability": 1}])
        await eventually(lambda: client.endpoint.worker(headers[WORKER_ID]).state == "unhealthy")


async def test_a_worker_that_is_never_ready_leaves_requests_without_one_and_is_ended():
    async with balance(command=SLEEPER, worker_wait_s=0.3, unhealthy_timeout_s=0.6) as client:
        status, _, body = await client.get("/count")
        assert (status, body) == (400, {"error": "no workers available"})
        (worker, *_) = client.endpoint.pool.workers.values()
        await eventually(lambda: worker.state == "dead")
        assert worker.unhealthy == "no healthy check within 0.6 s"


async def test_a_crash_loop_backs_off_and_the_key_is_asked_for():
    said = []
    async with balance(command=CRASHER, worker_wait_s=0.2, api_key="k3y") as client:
        client.endpoint.fleet._report = said.append
        assert (await client.get("/x"))[2] == {
            "status": 401,
            "title": "Unauthorized",
            "detail": "missing or wrong API key",
        }
        assert (await client.get("/x", headers={"Authorization": "Bearer k3y"}))[0] == 400
        for path in ("control/state", "metrics", "v2/local/health"):
            assert (await client.get(client.endpoint.page_url + path))[0] == 401
        await eventually(lambda: client.endpoint.fleet.crashes >= 2)
        assert "no module named brain" in str(said)
        assert "k3y" not in str(client.endpoint.control.state())


async def test_the_journal_has_a_line_per_request(tmp_path):
    path = tmp_path / "journal.jsonl"
    async with balance(workers_min=0, workers_max=0, worker_wait_s=0.05, journal=str(path)) as client:
        await client.get("/v1/models?key=hidden")
    (line,) = path.read_text().splitlines()
    assert "hidden" not in line
    said = orjson.loads(line)
    assert (said["event"], said["method"], said["path"], said["status"]) == ("request", "GET", "/v1/models", 400)
    assert said["ending"] == "refused"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scaler_type": "QUEUE_DELAY"}, "only REQUEST_COUNT"),
        ({"fleet": False}, "starts its workers"),
        ({"health_check_path": "ping"}, "health_check_path"),
    ],
)
def test_options_that_a_load_balancer_cannot_have_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        Options(kind="load-balancer", **changes)
