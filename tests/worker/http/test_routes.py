"""vLLM's routes over HTTP, with the session's real engine: clients as they are, statuses, streams, disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from llmpod.worker.engine.engine import Engine
from tests.worker.http.serving import Served, post, request, serving
from tests.worker.queue.test_loop_engine import Shared
from tests.worker.scripted import until

pytestmark = pytest.mark.process

CHAT = "/v1/chat/completions"
QUESTION: list[Any] = [{"role": "user", "content": "How do I write a CV?"}]
TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
async def served(engine: Engine) -> AsyncIterator[Served]:
    async with serving(Shared(engine)) as one:
        yield one


@pytest.fixture
def client(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)


async def test_the_openai_client_unmodified(served: Served, client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["llmpod-demo"]
    asked: Any = {"model": "llmpod-demo", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5, "it was not streamed"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens  # type: ignore[union-attr]
    assert whole._request_id is not None
    end = served.events.end_of(whole._request_id)
    assert (end["outcome"], end["tokens_generated"]) == ("ok", whole.usage.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_those_of_the_library(client: openai.AsyncOpenAI, *, stream: bool) -> None:
    asked: Any = {"model": "llmpod-demo", "messages": QUESTION, "stream": stream}
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(**asked | {"model": "gpt-4"})
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(**asked | {"temperature": 99})
    assert wrong.value.param == "temperature"
    assert wrong.value.body["job_id"] == wrong.value.request_id  # type: ignore[index]
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(**asked | {"messages": [{"role": "user", "content": "x" * 2000}]})
    assert "1024" in str(long.value)


async def test_the_workers_own_status_is_a_get(served: Served) -> None:
    answer = await served.send("GET", "/status")
    assert (answer.status, answer.json["state"], answer.json["model"]) == (200, "ready", "llmpod-demo")
    assert answer.json["capabilities"]["generate"] is True
    assert (await served.send("POST", "/status", {})).status == 405


async def test_the_anthropic_client_unmodified(served: Served) -> None:
    claude = anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0)
    asked: Any = {"model": "llmpod-demo", "messages": QUESTION, "max_tokens": 40, "extra_body": {"temperature": 0}}
    whole = await claude.messages.create(**asked)
    async with claude.messages.stream(**asked) as stream:
        text = await stream.get_final_text()
    assert text == whole.content[0].text  # type: ignore[union-attr]
    with pytest.raises(anthropic.NotFoundError) as missing:
        await claude.messages.create(**asked | {"model": "claude"})
    assert missing.value.body["type"] == "error"  # type: ignore[index]


async def test_statuses_types_and_methods_are_those_of_http(served: Served) -> None:
    for method, path, status, content_type in (
        ("GET", "/v1/models", 200, "application/json"),
        ("GET", "/v1/models/llmpod-demo", 200, "application/json"),
        ("GET", "/v1/models/gpt-4", 404, "application/json"),
        ("GET", "/health", 200, None),
        ("GET", "/metrics", 200, "text/plain"),
        ("GET", "/version?x=1", 200, "application/json"),
        ("GET", "/", 400, "application/json"),
        ("GET", "/favicon.ico", 404, "application/json"),
        ("GET", "/v1/chat/completion", 404, "application/json"),
        ("GET", "/v1/%2e%2e/models", 400, "application/json"),
        ("POST", "/scale_elastic_ep", 403, "application/json"),
        ("GET", CHAT, 405, "application/json"),
        ("DELETE", "/v1/models", 405, "application/json"),
        ("POST", "/v1/embeddings", 404, "application/json"),
    ):
        answer = await served.wire(request(method, path))
        assert answer.status == status, (path, answer)
        assert answer.headers.get("content-type", "").partition(";")[0] == (content_type or ""), path
        if status >= 400:
            assert answer.error["message"], path
            assert b"Traceback" not in answer.content
        head = await served.wire(request("HEAD", path))
        if method == "GET":
            assert (head.status, head.content) == (status, b""), path
            if path != "/metrics":
                assert head.headers.get("content-length") == answer.headers.get("content-length"), path
    options = await served.wire(request("OPTIONS", CHAT))
    assert (options.status, options.headers["allow"]) == (204, "POST, OPTIONS")
    assert (await served.wire(request("POST", "/tokenize", b"", "content-length: 0"))).status == 400


async def test_a_tool_call_streams_as_it_is_answered_whole(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "llmpod-demo", "messages": QUESTION, "tools": [TOOL], "tool_choice": "required"}
    whole = await client.chat.completions.create(**asked, temperature=0)
    assert whole.choices[0].message.tool_calls is not None
    names = [call.function.name for call in whole.choices[0].message.tool_calls]  # type: ignore[union-attr]
    stream = await client.chat.completions.create(**asked, temperature=0, stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
    called = [call.function.name for delta in deltas for call in delta.tool_calls or () if call.function]
    assert [name for name in called if name] == names


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_ends_its_request_in_the_engine(served: Served, *, stream: bool) -> None:
    before = len(served.ends())
    asked = {"messages": QUESTION, "max_tokens": 3000, "ignore_eos": True, "stream": stream}
    reader, writer = await served.connect()
    writer.write(post(json.dumps(asked).encode(), path=CHAT))
    await until(lambda: served.engine.unfinished)
    if stream:
        await reader.readuntil(b"data: ")
    writer.transport.abort()
    await until(lambda: not served.engine.unfinished, 2)
    await until(served.at_rest)
    (end,) = served.ends()[before:]
    assert (end["outcome"], end["ok"]) == ("cancelled", False)
    assert end["tokens_generated"] < 3000


async def test_many_clients_of_every_kind_leave_nothing(served: Served, client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        asked: Any = {"model": "llmpod-demo", "messages": QUESTION, "max_tokens": 20, "seed": number}
        if number % 3 == 0:
            answer = await client.chat.completions.create(**asked)
            return str(answer.choices[0].finish_reason)
        reasons = [
            chunk.choices[0].finish_reason
            async for chunk in await client.chat.completions.create(**asked, stream=True)
            if chunk.choices
        ]
        return str(reasons[-1])

    assert set(await asyncio.gather(*map(one, range(24)))) <= {"stop", "length"}
    await until(served.at_rest)
