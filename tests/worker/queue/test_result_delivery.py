"""Results reach RunPod whatever they hold and whatever the network does, or are reported as lost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from llmpod.worker.event_log import describe
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.plain_json import dumps
from llmpod.worker.queue import sdk
from llmpod.worker.queue.result_delivery import RUN_LIMIT_BYTES, Delivery, _address
from tests.worker.conftest import Events

pytestmark = pytest.mark.process

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
)


@given(anything)
def test_whatever_a_result_holds_is_sent_as_json_that_every_parser_reads(value: object) -> None:
    body = dumps({"output": value})
    body.decode()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(body, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (math.nan, None),
        (-math.inf, None),
        ("a\ud83d", "a\ufffd"),
        ("\ud83d\ude00", "😀"),
        ({"k\udc00": "v"}, {"k\ufffd": "v"}),
        (2**70, 2**70),
        ([np.float32(0.5), np.int64(7)], [0.5, 7]),
        ({1: {2}}, {"1": "{2}"}),
    ],
)
def test_what_json_cannot_say_is_said_as_nearly_as_it_can(value: Any, sent: Any) -> None:
    assert json.loads(dumps(value)) == sent


class Platform:
    """Answers POSTs with the given statuses, then with 200; keeps the bodies."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.calls: list[tuple[str, bytes]] = []
        self.requests: list[web.BaseRequest] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        self.calls.append((request.raw_path, await request.content.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=status or 200, headers=self.headers)


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    platform = Platform()
    server = web.Server(platform.answer)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    platform.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield platform
    await runner.cleanup()


@pytest.fixture
async def delivery(platform: Any, events: Events) -> AsyncIterator[Delivery]:
    async with sdk.open_session() as session:
        urls = {"stream_url": f"{platform.url}/stream/$ID?gpu=a+b", "done_url": f"{platform.url}/done/$ID?gpu=a+b"}
        yield Delivery(session, events.emit, Metrics(), timeout_s=5, **urls)


async def test_a_result_is_sent_as_the_sdk_sends_it(platform: Platform, delivery: Delivery) -> None:
    assert await delivery.result("job-1", {"output": {"text": "ü"}}, stream=False)
    assert platform.calls == [("/done/job-1?gpu=a+b&isStream=false", '{"output":{"text":"ü"}}'.encode())]
    headers = platform.requests[0].headers
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert headers["X-Request-ID"] == "job-1"
    assert "Content-Encoding" not in headers
    assert await delivery.chunk("job-1", "data: x\n\n")
    assert platform.calls[1] == ("/stream/job-1?gpu=a+b&isStream=false", b'{"output":"data: x\\n\\n"}')


@pytest.mark.parametrize("statuses", [[503], [429, 429], [500, 0, 502], [0, 0]])
async def test_a_failed_call_is_repeated_unchanged(platform: Platform, delivery: Delivery, statuses: list[int]) -> None:
    platform.statuses = list(statuses)
    assert await delivery.result("job-1", {"output": 1}, stream=True)
    assert len(platform.calls) == len(statuses) + 1
    assert len(set(platform.calls)) == 1


async def test_retry_after_is_respected(platform: Platform, delivery: Delivery) -> None:
    platform.statuses, platform.headers = [429], {"Retry-After": "1"}
    began = time.monotonic()
    assert await delivery.result("job-1", {"output": 1}, stream=False)
    assert time.monotonic() - began >= 1


async def test_a_result_that_never_arrives_is_reported_as_lost(
    platform: Platform, delivery: Delivery, events: Events
) -> None:
    platform.statuses = [503] * 100
    assert not await delivery.result("job-1", {"output": 1}, stream=False, patience_s=0.5)
    (lost,) = events.named("result_lost")
    assert (lost["request_id"], lost["cause"]) == ("job-1", "HTTP 503")


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_a_refusal_is_not_repeated(platform: Platform, delivery: Delivery, events: Events, status: int) -> None:
    platform.statuses = [status]
    assert not await delivery.result("job-1", {"output": 1}, stream=False)
    assert len(platform.calls) == 1
    assert events.named("result_lost")[0]["cause"] == f"HTTP {status}"


@pytest.mark.parametrize(("status", "size"), [(413, 10), (400, 2_000_000)])
async def test_a_refusal_for_size_becomes_a_failure_that_says_so(
    platform: Platform, delivery: Delivery, status: int, size: int
) -> None:
    platform.statuses = [status]
    assert await delivery.result("job-1", {"output": "x" * size}, stream=False)
    failure = json.loads(json.loads(platform.calls[1][1])["error"])
    assert (failure["code"], failure["retryable"]) == ("result_too_large", False)


async def test_what_runpod_would_complete_without_output_is_never_sent(platform: Platform, delivery: Delivery) -> None:
    large = {"output": "x" * (RUN_LIMIT_BYTES + 1)}
    await delivery.result("job-1", large, stream=False)
    assert b"result_too_large" in platform.calls[0][1]
    await delivery.result("sync-1", large, stream=False)
    assert len(platform.calls[1][1]) > RUN_LIMIT_BYTES, "a /runsync job may be twice as large"


async def test_a_chunk_is_given_back_when_it_cannot_be_sent(platform: Platform, delivery: Delivery) -> None:
    platform.statuses = [503] * 100
    assert not await delivery.chunk("job-1", "x", patience_s=0.3)


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_a_failure_that_is_tried_again_and_never_followed(
    platform: Platform, delivery: Delivery, status: int
) -> None:
    platform.statuses, platform.headers = [status], {"Location": "/login"}
    assert await delivery.result("job-1", {"output": 1}, stream=False)
    assert [path for path, _ in platform.calls] == ["/done/job-1?gpu=a+b&isStream=false"] * 2


async def test_what_is_always_redirected_is_lost_and_said_so_without_the_address(
    platform: Platform, delivery: Delivery, events: Events
) -> None:
    platform.statuses, platform.headers = [302] * 100, {"Location": "/login"}
    assert not await delivery.result("job-1", {"output": 1}, stream=False, patience_s=0.3)
    (lost,) = events.named("result_lost")
    assert lost["cause"] == "ClientResponseError: HTTP 302"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example("a\r\nX-Evil: 1")
@example("a#b?c=d&e/../f%2F ü")
def test_an_id_is_one_part_of_the_address_whatever_it_is(job_id: str) -> None:
    url = _address("http://127.0.0.1/done/$ID?gpu=a+b", job_id, stream=True)
    assert (url.raw_query_string, url.raw_fragment) == ("gpu=a+b&isStream=true", "")
    assert url.raw_parts[:2] == ("/", "done")
    assert unquote(url.raw_parts[2]) == job_id
    assert len(url.raw_parts) == 3


async def test_an_odd_id_is_reported_like_any_other(platform: Platform, delivery: Delivery) -> None:
    for job_id in ("a\r\nX-Evil: 1", "#?/ü \x00"):
        assert await delivery.result(job_id, {"output": 1}, stream=False)
        assert platform.calls.pop()[0] == f"/done/{quote(job_id, safe='')}?gpu=a+b&isStream=false"
        assert "X-Evil" not in platform.requests.pop().headers


async def test_a_poll_is_not_redirected_either(platform: Any) -> None:
    platform.statuses, platform.headers = [302], {"Location": "/login"}
    async with sdk.open_session() as session:
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await session.get(f"{platform.url}/job-take/w?token=SECRET")
    assert describe(caught.value) == "ClientResponseError: HTTP 302"
    assert [path for path, _ in platform.calls] == ["/job-take/w?token=SECRET"]
