"""RunPod's documented limits: request rates, sizes, and the bounds of what a request may ask for."""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpod.endpoint.api.http import bad_request
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.state.job import JobRequest
from llmpod.protocol import RATE_WINDOW_S, Rate

MIN_EXECUTION_TIMEOUT_MS = 5_000
MIN_TTL_MS = 10_000
MAX_POLICY_MS = 7 * 86_400_000
MIN_WAIT_MS = 1_000
MAX_WAIT_MS = 300_000


@dataclass(slots=True)
class RateWindow:
    """One operation's recent requests. `admit` and `leave` bracket a request; both are O(1)."""

    rate: Rate
    admitted_s: deque[float] = field(default_factory=deque)
    open: int = 0

    def admit(self, now: float, running_workers: int, requests_per_worker: int) -> bool:
        """Whether a request may pass at `now`: effective limit = max(base, running workers x requests per worker)."""
        grown = running_workers * requests_per_worker
        while self.admitted_s and now - self.admitted_s[0] >= RATE_WINDOW_S:
            self.admitted_s.popleft()
        if len(self.admitted_s) >= max(self.rate.per_window, grown):
            return False
        if self.rate.concurrent is not None and self.open >= max(self.rate.concurrent, grown):
            return False
        self.admitted_s.append(now)
        self.open += 1
        return True

    def leave(self) -> None:
        self.open -= 1


class Policy(BaseModel):
    """A job's `policy`, in milliseconds, as RunPod documents it."""

    model_config = ConfigDict(strict=True, extra="allow")

    executionTimeout: int | None = Field(None, ge=0)  # noqa: N815 -- RunPod's name
    ttl: int | None = Field(None, ge=0)
    lowPriority: bool | None = None  # noqa: N815 -- RunPod's name


class RunBody(BaseModel):
    """The body of /run and /runsync. Unknown fields are ignored: a newer client may send them."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input: Any
    webhook: str | None = None
    webhookV2: str | None = None  # noqa: N815 -- RunPod's name
    policy: Policy | None = None
    s3Config: dict[str, Any] | None = None  # noqa: N815 -- RunPod's name


def parse_json(body: bytes, *, nan_is_null: bool = False) -> Any:
    """JSON text to a value. Raises ApiError 400 for what is not strict JSON: NaN, Infinity, lone surrogates too."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if nan_is_null and (b"NaN" in body or b"Infinity" in body):
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(body, parse_constant=lambda name: None)
        raise ApiError(400, f"the body is not valid JSON: {error}") from None


def parse_request(body: bytes, *, any_input: bool, bounds: bool) -> JobRequest:
    """The body of /run or /runsync to a JobRequest. Raises ApiError 400 with the first thing that is wrong."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        parsed = RunBody.model_validate(value)
    except ValidationError as error:
        raise bad_request(error) from None
    if not any_input and not isinstance(parsed.input, dict):
        raise ApiError(400, "input: must be an object")
    for name in ("webhook", "webhookV2"):
        address = getattr(parsed, name)
        if address is not None and not address.startswith(("http://", "https://")):
            raise ApiError(400, f"{name}: must be an http or https address")
    policy = parsed.policy or Policy()
    if bounds:
        check_bounds("policy.executionTimeout", policy.executionTimeout, MIN_EXECUTION_TIMEOUT_MS)
        check_bounds("policy.ttl", policy.ttl, MIN_TTL_MS)
    extras = {
        name: value[name] for name in ("webhook", "webhookV2", "policy", "s3Config") if value.get(name) is not None
    }
    return JobRequest(
        input=dump(parsed.input),
        webhook=parsed.webhook,
        execution_timeout_ms=policy.executionTimeout,
        ttl_ms=policy.ttl,
        low_priority=bool(policy.lowPriority),
        extras=extras,
    )


def dump(value: Any) -> bytes:
    """A value that came from JSON back to JSON. Raises ApiError 400 where that fails (nested too deeply)."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"cannot take this JSON: {error}") from None


def check_bounds(name: str, value_ms: int | None, least_ms: int) -> None:
    """Raises ApiError 400 outside of `least_ms` to seven days."""
    if value_ms is not None and not least_ms <= value_ms <= MAX_POLICY_MS:
        raise ApiError(400, f"{name}: must be between {least_ms} and {MAX_POLICY_MS} ms")


def parse_number(name: str, text: str) -> int:
    """A whole number from a query string. Raises ApiError 400: a sign or ASCII digits alone, at most twelve."""
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise ApiError(400, f"{name}: must be a whole number")
    return int(text)


def parse_wait_ms(text: str | None, default_ms: int) -> int:
    """`?wait=` in milliseconds, moved into RunPod's range 1000..300000. Raises ApiError 400 when it is not a number."""
    if text is None:
        return default_ms
    return min(max(parse_number("wait", text), MIN_WAIT_MS), MAX_WAIT_MS)


def split_chunk(output: bytes, limit_bytes: int, overflow: str) -> list[bytes]:
    """One yielded value (JSON text) as stream chunks of at most `limit_bytes` each.

    RunPod documents that larger outputs are split, not how: text is split here between characters, and other values,
    which have no obvious seam, are refused with ApiError 400. That is `split`; `reject` and `accept` do so with all.
    """
    if len(output) <= limit_bytes or overflow == "accept":
        return [output]
    text = orjson.loads(output)
    if overflow == "reject" or not isinstance(text, str):
        raise ApiError(400, f"a stream chunk of {len(output)} bytes is above the limit of {limit_bytes}")
    # One character is at most six bytes of JSON (an escaped control character) inside two quotes.
    step = max(1, (limit_bytes - 2) // 6)
    return [orjson.dumps(text[start : start + step]) for start in range(0, len(text), step)]
