"""Images through a real worker with a real, tiny multimodal model: data URIs are seen, and nothing is ever fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.worker.test_routes_clients import Served, serve
from tests.worker.vision import make_model, picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def seeing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    model = make_model(tmp_path_factory.mktemp("model") / "eye")
    async for served in serve(
        MODEL_NAME=str(model),
        MAX_MODEL_LEN="1000",
        MAX_MEDIA_BYTES="20000",
        ALLOWED_MEDIA_DOMAINS="localhost,images.example",
    ):
        yield served


async def ask(seeing: Served, *addresses: str) -> Any:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    parts.append({"type": "text", "text": "What is this?"})
    return await seeing.openai.chat.completions.create(
        model="eye",
        messages=[{"role": "user", "content": parts}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        extra_body={"ignore_eos": True},
    )


async def test_an_image_in_a_data_uri_is_seen_by_the_model(seeing: Served) -> None:
    blind = await ask(seeing)
    red, again, blue = [await ask(seeing, picture(colour)) for colour in ("red", "red", "blue")]
    assert red.usage.prompt_tokens == blind.usage.prompt_tokens + 4  # 28 by 28 pixels in patches of 14
    seen = [answer.choices[0].logprobs.content[0].logprob for answer in (red, again, blue)]
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)
    assert seen[0] != pytest.approx(seen[2], abs=1e-4)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (picture("red", 128), "at most 20000"),
        ("data:image/png;base64,!!!", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", ""),
        ("http://localhost/a.png", "cannot be fetched"),
        ("http://127.0.0.1/a.png", "fetches files from"),
        ("https://example.org/a.png", "fetches files from"),
        ("file:///etc/passwd", "fetches files from"),
        ("/etc/passwd", "fetches files from"),
    ],
)
async def test_an_image_that_may_not_be_had_is_the_clients_error(seeing: Served, address: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(seeing, address)
    assert says in str(refused.value)
    assert (await ask(seeing)).choices
