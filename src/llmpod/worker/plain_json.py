"""JSON encoder that accepts any value, for results and the log."""

from __future__ import annotations

import json
import math

import orjson


def dumps(value: object) -> bytes:
    """Encode `value` as JSON. Never raises.

    NaN and infinities become null, halves of surrogate pairs U+FFFD, keys text, and foreign objects their `str`.
    """
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except Exception:  # noqa: BLE001 - text that is not Unicode, numbers beyond 64 bits, endless nesting, a bad __str__
        return json.dumps(_clean(value), ensure_ascii=False, allow_nan=False).encode()


def _clean(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return _unicode(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < _DIGITS_AT_HAND else _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < 100 and isinstance(value, dict):
        return {_unicode(_text(key)): _clean(item, depth + 1) for key, item in value.items()}
    if depth < 100 and isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth + 1) for item in value]
    return _unicode(_text(value)[:1000])


_DIGITS_AT_HAND = 10_000  # bits; Python refuses to write out much longer numbers


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a line or a result with a hole is better than none
        return f"<{type(value).__name__}>"


def _unicode(text: str) -> str:
    """A pair that was written as two halves becomes its character again, a lonely half U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
