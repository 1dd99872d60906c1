"""Images through a real worker with a tiny multimodal model: data URIs are seen, and nothing private is fetched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.worker.routes.test_clients import Served, serve
from tests.worker.vision import IMAGE_TOKENS, bomb, make_model, picture

pytestmark = [pytest.mark.slow, pytest.mark.engine]

HERE = "messages[0].content[0].image_url.url"
MAX_BYTES = 20_000


@pytest.fixture(scope="module")
async def seeing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    model = make_model(tmp_path_factory.mktemp("model") / "eye")
    async for served in serve(
        MODEL_NAME=str(model),
        MAX_MODEL_LEN="1000",
        MAX_MEDIA_BYTES=str(MAX_BYTES),
        ALLOWED_MEDIA_DOMAINS="localhost,127.0.0.1",
    ):
        yield served


class Loopback:
    """A server on this machine that counts who comes."""

    def __init__(self) -> None:
        self.visits = 0
        self.port = 0

    async def visited(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    loopback = Loopback()
    server = await asyncio.start_server(loopback.visited, "127.0.0.1", 0)
    loopback.port = server.sockets[0].getsockname()[1]
    async with server:
        yield loopback


def asking(*addresses: str) -> dict[str, Any]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    parts.append({"type": "text", "text": "What is this?"})
    return {
        "model": "eye",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": True,
        "extra_body": {"ignore_eos": True},
    }


async def ask(seeing: Served, *addresses: str) -> Any:
    return await seeing.openai.chat.completions.create(**asking(*addresses))


async def refusal(seeing: Served, address: str) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(seeing, address)
    return refused.value


async def test_an_image_in_a_data_uri_is_seen_by_the_model(seeing: Served) -> None:
    blind = await ask(seeing)
    red, again, blue = [await ask(seeing, picture(colour)) for colour in ("red", "red", "blue")]
    assert red.usage.prompt_tokens == blind.usage.prompt_tokens + IMAGE_TOKENS
    seen = [answer.choices[0].logprobs.content[0].logprob for answer in (red, again, blue)]
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)
    assert seen[0] != pytest.approx(seen[2], abs=1e-4)


async def test_the_model_has_seen_an_image_before_the_first_job(seeing: Served) -> None:
    status = (await seeing.job({"route": "/status"}))["output"]
    assert {name for name, can in status["capabilities"].items() if can} == {"generate", "vision"}
    assert {name: result["ok"] for name, result in status["warm_up"].items()} == {"generate": True, "vision": True}


async def test_a_files_uuid_opens_no_other_jobs_file(seeing: Served) -> None:
    """vLLM caches files under the uuid that a client gives them, and would take one job's for another's."""

    async def ask_about(address: str | None, uuid: str) -> Any:
        options = asking()
        part = {"type": "image_url", "image_url": None if address is None else {"url": address}, "uuid": uuid}
        options["messages"][0]["content"].insert(0, part)
        answer = await seeing.openai.chat.completions.create(**options)
        return answer.choices[0].logprobs.content[0].logprob

    red, blue = [(await ask(seeing, picture(c))).choices[0].logprobs.content[0].logprob for c in ("red", "blue")]
    assert await ask_about(picture("red"), "u1") == pytest.approx(red, abs=1e-5)
    assert await ask_about(picture("blue"), "u1") == pytest.approx(blue, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="send the file itself") as refused:
        await ask_about(None, "u1")
    assert refused.value.param == "messages"


async def test_an_image_is_answered_alike_streamed_and_not(seeing: Served) -> None:
    whole = await ask(seeing, picture("green"))
    text, usage = "", None
    options = asking(picture("green")) | {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await seeing.openai.chat.completions.create(**options):
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 6)


async def test_a_model_that_takes_one_image_refuses_two(seeing: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="image"):
        await ask(seeing, picture("red"), picture("blue"))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (picture("red", 128), f"at most {MAX_BYTES}"),
        ("data:image/png;base64,!!!", "not valid base64"),
        ("data:image/png,raw", "not a data URI with base64"),
        ("http://localhost/a.png", "cannot be fetched"),  # allowed by name, and then it leads to this machine
        ("http://127.0.0.1/a.png", "fetches files from"),
        ("https://example.org/a.png", "fetches files from"),
        ("file:///etc/passwd", "fetches files from"),
        ("/etc/passwd", "fetches files from"),
    ],
    ids=["large", "broken", "plain", "loopback-name", "loopback-address", "elsewhere", "file-url", "path"],
)
async def test_an_image_that_may_not_be_had_is_the_clients_error_and_names_its_place(
    seeing: Served, address: str, says: str
) -> None:
    refused = await refusal(seeing, address)
    assert says in refused.message
    assert refused.param == HERE


@pytest.mark.parametrize(
    "address",
    ["data:image/png;base64,aGVsbG8=", "data:image/png;base64,", picture("red")[:422], bomb()],
    ids=["text", "empty", "cut-short", "bomb"],
)
async def test_what_is_no_image_is_the_clients_error_and_the_worker_lives(seeing: Served, address: str) -> None:
    assert (await refusal(seeing, address)).status_code == 400
    assert (await ask(seeing, picture("red"))).choices


async def test_a_server_on_the_workers_own_machine_is_never_asked(seeing: Served, loopback: Loopback) -> None:
    for host in ("localhost", "127.0.0.1", "127.1", "[::ffff:127.0.0.1]", "2130706433"):
        await refusal(seeing, f"http://{host}:{loopback.port}/a.png")
    assert loopback.visits == 0
