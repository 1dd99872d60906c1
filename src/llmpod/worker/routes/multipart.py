"""Multipart encoder for routes that take a form: the file is base64 in the job's JSON body."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import Any

import orjson

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
    media.check(media.Item("file", body, "file", encoded, is_data=True), settings)
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise JobError(Code.INVALID_INPUT, "file is not valid base64.", field="file") from None
    boundary = secrets.token_hex(16)
    name = re.sub(r"[^\w.-]", "", str(body.get("filename") or ""))[:100] or "audio.wav"
    head = f'name="file"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    parts = [head.encode() + content]
    for key, value in body.items():
        if key in ("file", "filename") or value is None:
            continue
        if not key.replace("_", "").replace("[]", "").isalnum():
            raise JobError(Code.UNKNOWN_FIELD, f"{key[:100]!r} is not a field of this route.", field=key[:100])
        for item in value if isinstance(value, list) else [value]:
            text = item if isinstance(item, str) else orjson.dumps(item).decode()
            parts.append(f'name="{key}"\r\n\r\n{text}'.encode())
    start = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
    return b"\r\n".join(start + part for part in parts) + f"\r\n--{boundary}--\r\n".encode(), (
        f"multipart/form-data; boundary={boundary}"
    )
