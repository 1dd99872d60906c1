"""Multipart encoder for routes that take a form: the file is base64 in the job's JSON body."""

from __future__ import annotations

import re
from typing import Any

import orjson
from urllib3 import encode_multipart_formdata

from llmpod.worker.errors import Code, JobError
from llmpod.worker.routes import media
from llmpod.worker.settings import Settings


def encode(body: dict[str, Any], settings: Settings) -> tuple[bytes, str]:
    """Encode a body as multipart/form-data; returns it with its content type. `file` is base64 or a data URI.

    Raises:
        JobError: there is no file, or it is not base64.
    """
    file = body.get("file")
    if not isinstance(file, str) or not file:
        raise JobError(Code.INVALID_INPUT, "file must be the audio as base64.", field="file")
    encoded = file.partition(",")[2] if file[:5].lower() == "data:" else file
    content = media.Files(settings).decode(encoded, "file")
    name = re.sub(r"[^\w.-]", "", str(body.get("filename") or ""))[:100] or "audio.wav"
    fields: list[tuple[str, Any]] = [("file", (name, content, "application/octet-stream"))]
    for key, value in body.items():
        if key in ("file", "filename") or value is None:
            continue
        if not key.replace("_", "").replace("[]", "").isalnum():
            raise JobError(Code.UNKNOWN_FIELD, f"{key[:100]!r} is not a field of this route.", field=key[:100])
        items = value if isinstance(value, list) else [value]
        fields += ((key, item if isinstance(item, str) else orjson.dumps(item).decode()) for item in items)
    return encode_multipart_formdata(fields)
