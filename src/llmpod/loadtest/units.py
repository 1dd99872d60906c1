"""Parsing and formatting of durations, moments, counts, rates and money."""

import math
import re
from datetime import UTC, datetime

from llmpod.loadtest.errors import UsageError

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration_s(text: str) -> float:
    """`90`, `1.5s`, `250ms`, `30m`, `1h30m` -> seconds. A bare number is seconds."""
    cleaned = text.strip().lower()
    try:
        value = float(cleaned)
    except ValueError:
        parts = _PART.findall(cleaned)
        if not parts or "".join(number + unit for number, unit in parts) != cleaned:
            raise UsageError(f"'{text}' is not a duration; write it like 30s, 250ms, 5m or 1h30m") from None
        value = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"'{text}' is not a duration: it must be finite and not negative")
    return value


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def show_ms(ms: float | None) -> str:
    """3449.2 -> `3.45 s`, 82.4 -> `82 ms`, infinity -> `∞`, None -> `n/a`."""
    if ms is None or math.isnan(ms):
        return "n/a"
    if math.isinf(ms):
        return "∞"
    sign, size = ("-", -ms) if ms < 0 else ("", ms)
    if size >= 600_000:
        return f"{sign}{size / 60_000:.1f} min"
    if size >= 100_000:
        return f"{sign}{size / 1000:.0f} s"
    if size >= 10_000:
        return f"{sign}{size / 1000:.1f} s"
    if size >= 1000:
        return f"{sign}{size / 1000:.2f} s"
    if size >= 10 or size == 0:
        return f"{sign}{size:.0f} ms"
    return f"{sign}{size:.1f} ms"


def show_duration(seconds: float) -> str:
    """3725 -> `1h02m05s`, 65 -> `1m05s`, 4.2 -> `4.2s`."""
    if seconds < 60:
        return f"{seconds:.1f}s".replace(".0s", "s")
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m{secs:02d}s" if hours else f"{minutes}m{secs:02d}s"


def show_usd(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"${value:.2f}" if abs(value) >= 1 else f"${value:.4f}" if abs(value) >= 0.001 else f"${value:.6f}"


def show_share(share: float | None) -> str:
    """0.0213 -> `2.1%`."""
    return "n/a" if share is None else f"{share * 100:.1f}%"


def show_rate(per_s: float | None) -> str:
    """Requests per second; slow endpoints read better per minute."""
    if per_s is None:
        return "n/a"
    return f"{per_s:.2f}/s" if per_s >= 1 or per_s == 0 else f"{per_s * 60:.1f}/min"


def count(number: int, thing: str) -> str:
    """(1, "request") -> `1 request`; (2, "request") -> `2 requests`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
