"""Forms become the JSON body that the same route takes as a job, and that body becomes the form for vLLM again."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from urllib3 import encode_multipart_formdata

from llmpod.worker.errors import JobError
from llmpod.worker.http.body import Body, Budget
from llmpod.worker.routes import multipart
from llmpod.worker.settings import Settings

AUDIO = bytes(range(256)) * 300
FIELDS: list[tuple[str, Any]] = [
    ("file", ("speech.wav", AUDIO)),
    ("model", "demo"),
    ("stream", "true"),
    ("max_completion_tokens", "64"),
    ("prompt", "007"),
    ("temperature", "0.5"),
    ("timestamp_granularities[]", "word"),
    ("timestamp_granularities[]", "segment"),
]
BODY = {
    "file": base64.b64encode(AUDIO).decode(),
    "filename": "speech.wav",
    "model": "demo",
    "stream": True,
    "max_completion_tokens": 64,
    "prompt": "007",
    "temperature": "0.5",
    "timestamp_granularities[]": ["word", "segment"],
}


async def read(content: bytes, content_type: str, numbers: tuple[str, ...] | None = ("max_completion_tokens",)) -> Any:
    pieces = [content[start : start + 1000] for start in range(0, len(content), 1000)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    headers = {"content-type": content_type, "content-length": str(len(content))}
    return await Body(receive, headers, Settings(), Budget(10**8)).value(numbers)


async def test_a_form_is_the_body_of_the_job_and_that_body_the_form_for_vllm() -> None:
    body = await read(*encode_multipart_formdata(FIELDS))
    assert body == BODY
    again, content_type = multipart.encode(body, Settings())
    assert await read(again, content_type) == BODY


@pytest.mark.parametrize("value", ["many", "1.5", "-1", ""])
async def test_what_is_no_number_stays_text_for_the_worker_to_refuse(value: str) -> None:
    assert await read(*encode_multipart_formdata([("max_completion_tokens", value)])) == {
        "max_completion_tokens": value
    }


@pytest.mark.parametrize(
    "form",
    [
        (b"--x\r\n\x00: a\r\n\r\n", "multipart/form-data; boundary=x"),
        (b"--x--", "multipart/form-data"),
        encode_multipart_formdata([("file", ("a", b"1")), ("other", ("b", b"2"))]),
        encode_multipart_formdata([(f"field{number}", "1") for number in range(101)]),
    ],
)
async def test_what_is_no_form_is_a_400(form: tuple[bytes, str]) -> None:
    with pytest.raises(JobError) as caught:
        await read(*form)
    assert caught.value.failure.status == 400


async def test_a_form_on_a_route_without_one_is_a_415() -> None:
    with pytest.raises(JobError) as caught:
        await read(*encode_multipart_formdata(FIELDS), numbers=None)
    assert caught.value.failure.status == 415
