"""/openai/*: the shapes a worker gets, and the responses the official OpenAI client gets."""

import asyncio
import json
import time

import openai
import pytest

from tests.endpoint.conftest import serve

pytestmark = pytest.mark.process


@pytest.fixture
def official(streaming):
    return openai.AsyncOpenAI(base_url=streaming.endpoint.openai_url, api_key="any", max_retries=0)


def messages(text):
    return [{"role": "user", "content": text}]


async def test_the_official_client_completes_a_chat(official):
    answer = await official.chat.completions.create(model="echo", messages=messages("hello there"))
    assert answer.choices[0].message.content == "hello there"


async def test_the_official_client_lists_models(official):
    assert [model.id async for model in official.models.list()] == ["echo"]


async def test_the_official_client_streams_word_by_word(official):
    arrivals = []
    text = ""
    stream = await official.chat.completions.create(model="echo", messages=messages("a b c d e f"), stream=True)
    async for chunk in stream:
        arrivals.append(time.monotonic())
        text += chunk.choices[0].delta.content
    assert text.split() == ["a", "b", "c", "d", "e", "f"]
    # Unbuffered: six words 20 ms apart must not arrive as one lump.
    assert arrivals[-1] - arrivals[0] > 0.05


async def test_sse_text_passes_verbatim(streaming):
    body = {"messages": messages("x y"), "stream": True}
    async with streaming.session.post(streaming.endpoint.openai_url + "/chat/completions", json=body) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = await response.text()
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == "x "


async def test_a_failure_before_the_first_chunk_has_its_http_code(official):
    with pytest.raises(openai.InternalServerError) as caught:
        await official.chat.completions.create(model="echo", messages=messages("fail"), stream=True)
    assert "told to fail" in caught.value.message
    with pytest.raises(openai.InternalServerError):
        await official.chat.completions.create(model="echo", messages=messages("fail"))


async def test_a_failure_in_mid_stream_reaches_the_client_as_an_error(official):
    got = []
    stream = await official.chat.completions.create(model="echo", messages=messages("one two break x"), stream=True)
    with pytest.raises(openai.APIError, match="told to break"):
        [got.append(chunk.choices[0].delta.content) async for chunk in stream]
    assert got == ["one ", "two "]


async def test_a_client_that_leaves_cancels_its_job(streaming):
    body = {"messages": messages(" ".join(["word"] * 500)), "stream": True}
    response = await streaming.session.post(streaming.endpoint.openai_url + "/chat/completions", json=body)
    await response.content.readany()
    job = streaming.endpoint.store.recent(1)[0]
    assert job.state == "IN_PROGRESS"
    response.close()
    async with asyncio.timeout(5):
        while job.state != "CANCELLED":
            await asyncio.sleep(0.01)


async def play(client, answer):
    """Takes the next job as a worker and answers it."""
    _, job = await client.get("/job-take/w1?gpu=x")
    for chunk in answer.get("chunks", []):
        await client.post(f"/job-stream/w1/{job['id']}?gpu=x", {"output": chunk})
    await client.post(f"/job-done/w1/{job['id']}?gpu=x", answer["done"])
    return job


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ({"output": [{"object": "x"}]}, {"object": "x"}),
        ({"output": {"object": "x"}}, {"object": "x"}),
        ({"output": '{"object":"x"}'}, {"object": "x"}),
        ({"output": ['{"object":"x"}']}, {"object": "x"}),
        ({"output": [1, 2]}, [1, 2]),
        ({"output": {"code": 404, "message": "no such model"}}, {"code": 404, "message": "no such model"}),
    ],
)
async def test_every_shape_an_official_worker_answers_in_becomes_the_object(bare, done, expected):
    call = asyncio.create_task(bare.post("/openai/v1/embeddings", {"input": "x"}))
    job = await play(bare, {"done": done})
    assert job["input"] == {"openai_route": "/v1/embeddings", "openai_input": {"input": "x"}}
    assert await call == (200, expected)


async def test_a_generator_without_aggregate_answers_with_its_only_chunk(bare):
    call = asyncio.create_task(bare.post("/openai/v1/completions", {"prompt": "x"}))
    await play(bare, {"chunks": ['{"a":1}'], "done": {"output": []}})
    assert await call == (200, {"a": 1})


async def test_get_has_no_openai_input(bare):
    call = asyncio.create_task(bare.get("/openai/v1/models"))
    job = await play(bare, {"done": {"output": {"data": []}}})
    assert job["input"] == {"openai_route": "/v1/models"}
    assert await call == (200, {"data": []})


async def test_a_failed_call_quotes_the_error_the_worker_wrote(bare):
    call = asyncio.create_task(bare.post("/openai/v1/completions", {"prompt": "x"}))
    await play(bare, {"done": {"error": json.dumps({"message": "too long", "type": "invalid_request_error"})}})
    assert await call == (500, {"error": {"message": "too long", "type": "invalid_request_error"}})


async def test_a_call_that_nobody_answers_ends_with_504_and_leaves_no_job():
    async with serve(fleet=False, openai_wait_s=0.3, failed_openai_status=502) as client:
        status, body = await client.post("/openai/v1/completions", {"prompt": "x"})
        assert status == 504
        assert "0.3 s" in body["error"]
        assert client.endpoint.store.recent(1)[0].state == "CANCELLED"
        assert not client.endpoint.store.queue


async def test_a_worker_lost_in_mid_stream_does_not_repeat_what_was_sent(bare):
    body = {"prompt": "x", "stream": True}
    response = asyncio.create_task(bare.session.post(bare.endpoint.openai_url + "/completions", json=body))
    _, job = await bare.get("/job-take/w1?gpu=x")
    await bare.post(f"/job-stream/w1/{job['id']}?gpu=x", {"output": "data: 1\n\n"})
    answer = await response
    assert await answer.content.readany() == b"data: 1\n\n"
    bare.endpoint.lose_worker("w1")
    rest = (await answer.content.read()).decode()
    assert rest.startswith('data: {"error":')
    assert bare.endpoint.job(job["id"]).state == "FAILED"


async def test_a_slow_reader_holds_up_neither_the_worker_nor_others_and_loses_nothing(bare):
    body = {"prompt": "x", "stream": True}
    call = asyncio.create_task(bare.session.post(bare.endpoint.openai_url + "/completions", json=body))
    _, job = await bare.get("/job-take/w1?gpu=x")
    event = "data: " + "x" * 900_000 + "\n\n"
    for _ in range(20):
        # Far more than the socket's buffers hold, and nobody reads yet.
        assert (await bare.post(f"/job-stream/w1/{job['id']}?gpu=x", {"output": event}))[0] == 200
    assert (await bare.get("/health"))[0] == 200
    await bare.post(f"/job-done/w1/{job['id']}?gpu=x", {"output": []})
    assert await (await call).text() == event * 20
