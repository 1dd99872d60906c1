"""What the target sends, made safe to keep: the one way for its text, numbers and ids into records and reports.

A target may send anything: half a surrogate pair, terminal control sequences, an integer of 400 digits, JSON nested a
hundred thousand deep, an id that is a path. None of it is this tool's failure, and none of it may cost the report.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from llmpod.protocol import CHUNK_LIMIT_BYTES, RUNSYNC_LIMIT_BYTES

REPLY_LIMIT_BYTES = RUNSYNC_LIMIT_BYTES + 2**20  # and what is around the result
EVENT_LIMIT_BYTES = CHUNK_LIMIT_BYTES + 2**16
DEEPEST = 64
# A duration above 115 days or a billion tokens is no measurement.
LONGEST_MS, MOST = 1e10, 10**9
_SUSPECT = re.compile(r"\\[ubfr]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ID = re.compile(r"(?!\.+$)[A-Za-z0-9_.:~=@+-]{1,200}")
_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)


class UnreadableError(ValueError):
    """A reply that is no JSON as a service writes it."""


def read_json(text: str, redact: Callable[[str], str] = str) -> Any:
    """The JSON value of `text`, without control characters and lone surrogates in any of its strings, and redacted.

    `redact` is applied to the parsed strings too: a key that a reply spells with \\u escapes is not in its text.
    Raises UnreadableError: not JSON, or nested more than DEEPEST deep.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UnreadableError("JSON nested too deep") from None
    except ValueError:
        raise UnreadableError("not JSON") from None
    if text.count("[") + text.count("{") > DEEPEST and too_deep(value):
        raise UnreadableError("JSON nested too deep")
    return _cleaned(value, redact) if _SUSPECT.search(text) else value


def too_deep(value: Any) -> bool:
    """Whether a JSON value is nested more than DEEPEST deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [child for children in inside for child in children]
    return bool(level)


def _cleaned(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(_UNSAFE.sub("\ufffd", value))
    if isinstance(value, dict):
        return {_cleaned(key, redact): _cleaned(item, redact) for key, item in value.items()}
    return [_cleaned(item, redact) for item in value] if isinstance(value, list) else value


def line(value: Any, limit: int = 300) -> str:
    """One printable line of at most `limit` characters; what cannot be printed is U+FFFD."""
    text = " ".join(str(value)[: 4 * limit].split())[:limit]
    return text if text.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in text)


def label(value: Any, limit: int = 100) -> str | None:
    """A name (a worker, a state, a finish reason): a short line, or None for what is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return line(value, limit) or None


def number(value: Any, most: float = LONGEST_MS) -> float | None:
    """A finite number from 0 to `most`; None for everything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        return None
    return float(value)


def count(value: Any) -> int | None:
    """A whole number from 0 to a billion; None for everything else."""
    found = number(value, MOST)
    return None if found is None or found != math.floor(found) else int(found)


def job_id(value: Any) -> str | None:
    """A job's id that can stand in an address, or None."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def job_path(operation: str, of: str | None) -> str:
    """`/status/ID`: the only place where an id becomes part of an address."""
    return f"/{operation}/{quote(of or '', safe='')}"


def code(value: Any) -> str | None:
    """A stable error code such as `prompt_too_long`; None for what is no identifier."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None
