"""Forms (multipart/form-data), as clients send audio: turned into the JSON body that the same route takes as a job."""

from __future__ import annotations

import base64
from collections.abc import Collection, MutableMapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from llmpod.worker.errors import Code, JobError

MOST_FIELDS = 100


async def parse(content: bytes, content_type: str, numbers: Collection[str]) -> dict[str, Any]:
    """The fields of a form. Its file becomes base64, with its name beside it, as routes/multipart.py writes it again.

    All fields of a form are text; `numbers` are those that the worker's limits read as whole numbers.

    Raises:
        JobError: it is not a form, or has too many fields.
    """

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    request = Request({"type": "http", "headers": [(b"content-type", content_type.encode())]}, receive)
    body: dict[str, Any] = {}
    try:
        async with request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=len(content)) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    body[name] = base64.b64encode(await value.read()).decode()
                    body["filename"] = value.filename
                elif name.endswith("[]"):
                    body.setdefault(name, []).append(value)
                else:
                    body[name] = _typed(value) if name == "stream" or name in numbers else value
    except MultiPartException as error:
        raise JobError(Code.INVALID_INPUT, f"The body is not a form: {error.message[:200]}") from None
    return body


def _typed(value: str) -> object:
    """true, false and whole numbers as such; anything else stays text, which the worker refuses by name."""
    word = value.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    return int(word) if word.isdecimal() and len(word) < 20 else value
