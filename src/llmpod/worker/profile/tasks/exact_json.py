"""JSON with exact numbers: every number is a Decimal, so that 0.1 + 0.2 equals 0.3 in a rule."""

from __future__ import annotations

import json
import math
from decimal import Context, Decimal
from typing import Any

MAX_DEPTH = 64
"""Deepest nesting of an answer."""
CONTEXT = Context(prec=1000, traps=[])
"""For sums: enough digits that doubles of any size add up exactly."""
_LARGEST = 2**63


class UnreadableError(ValueError):
    """A text is not JSON, or it holds what readers of JSON cannot."""


def read(text: str) -> Any:
    """Parse JSON whose numbers become Decimals.

    Raises:
        UnreadableError: it is not JSON, it is nested too deep, or a number is beyond a double (1e400, 1e-400): other
            readers would see infinity, or 0.
    """
    try:
        value = json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_refuse)
    except RecursionError:
        raise UnreadableError("is nested too deep") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"is not JSON: {error.msg} at character {error.pos}") from None
    if _deeper(value, MAX_DEPTH):
        raise UnreadableError("is nested too deep")
    return value


def plain(value: Any) -> Any:
    """`value` with Python's own numbers in place of Decimals: whole numbers stay whole, all others become doubles."""
    if isinstance(value, Decimal):
        whole = value.as_tuple().exponent == 0 and -_LARGEST <= value < _LARGEST
        return int(value) if whole else float(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _number(digits: str) -> Decimal:
    rounded = float(digits)
    mantissa = digits.lower().partition("e")[0]
    if not math.isfinite(rounded) or (rounded == 0 and mantissa.strip("-0.")):
        raise UnreadableError("holds a number beyond the range of a double")
    return Decimal(digits) if rounded else Decimal(0)


def _refuse(name: str) -> Any:
    raise UnreadableError(f"is not JSON: {name} is not a number")


def _deeper(value: Any, depth: int) -> bool:
    if depth < 0:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_deeper(item, depth - 1) for item in inner)
