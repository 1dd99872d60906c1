"""Converts vLLM's response to a route call into the job's replies, or into an error."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from llmpod.protocol import CHUNK_LIMIT_BYTES
from llmpod.worker.engine.app.asgi import Exchange
from llmpod.worker.engine.app.metered_engine import ENGINE_FAILURE
from llmpod.worker.engine.engine import Engine
from llmpod.worker.errors import Code, JobError, RouteError
from llmpod.worker.routes import error_fields, sse
from llmpod.worker.routes.call import RouteCall

Reply = dict[str, Any] | str

_CODES = {404: Code.NOT_FOUND, 429: Code.OVERLOADED, 501: Code.UNSUPPORTED, 503: Code.OVERLOADED}

MAX_MESSAGE_CHARS = 2000
"""Length limit for messages of vLLM, which may quote the client's whole input."""


@dataclass
class RouteAnswer:
    """The response of one exchange."""

    call: RouteCall
    exchange: Exchange
    engine: Engine

    async def replies(self) -> AsyncGenerator[Reply, None]:
        """Yield the job's replies, once the exchange has started.

        Raises:
            JobError: an error status, an error in the answer, a forced call that is missing, an event too large.
            Broken: the application ended before its answer did.
        """
        call, exchange = self.call, self.exchange
        unguard = self.engine.application.unguard
        if exchange.status >= 300:
            raise self._refusal(exchange.status, await exchange.whole())
        if exchange.content_type == "text/event-stream":
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    call.record.streaming = True
                    call.record.generated = call.meter.ended()
                    yield unguard(chunk).decode()
            return
        content = unguard(await exchange.whole())
        if exchange.content_type == "application/json":
            yield self._object(content)
        elif not content:
            yield {"status": exchange.status}
        elif exchange.content_type.startswith("text/"):
            yield content.decode(errors="replace")
        else:
            yield {"content_type": exchange.content_type, "base64": base64.b64encode(content).decode()}

    def broken_off(self) -> RouteError:
        """The error for a response that the application did not complete."""
        return self._failed(500, ENGINE_FAILURE)

    def _object(self, content: bytes) -> Reply:
        """Parse a JSON response; anything but an object stays text."""
        answer = orjson.loads(content)
        if not isinstance(answer, dict):
            return content.decode()
        if self.call.wanted_model is not None:
            cards: list[dict[str, Any]] = answer["data"]
            return next(card for card in cards if card["id"] == self.call.wanted_model)
        limits = self.call.reported_limits
        if limits is not None:
            answer["limits"] = limits
        # The SDK treats a top-level key `error` as a failure; null means none (the responses route has it).
        if answer.get("error"):
            raise self._refusal(500, content)
        required = self.call.new.required_call
        if required is not None and not required.observe(answer):
            raise required.error()
        return answer

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield chunks of whole events: the first at once, then all that are ready."""
        splitter = sse.Splitter()
        limits = self.call.reported_limits
        async with aclosing(self.exchange.pieces(self.call.meter.ended)) as pieces:
            async for piece in pieces:
                events, failure = self._until_failure(splitter.feed(piece))
                if events and limits is not None:
                    events[0] = sse.with_field(events[0], "limits", limits)
                    limits = None
                for chunk in sse.merge(sse.join(events) if len(events) > 1 else events):
                    if len(chunk) > CHUNK_LIMIT_BYTES:
                        raise JobError(
                            Code.RESULT_TOO_LARGE,
                            f"One event has {len(chunk)} bytes; RunPod carries {CHUNK_LIMIT_BYTES} at a time.",
                        )
                    yield chunk
                if failure is not None:
                    raise failure
        if splitter.rest().strip():
            raise JobError(Code.GENERATION_FAILED, "The stream broke off inside an event.")

    def _until_failure(self, events: list[bytes]) -> tuple[list[bytes], JobError | None]:
        """Split events at the one that reports an error."""
        for index, event in enumerate(events):
            failure = self._failure_in(event)
            if failure is not None:
                return events[:index], failure
        return events, None

    def _failure_in(self, event: bytes) -> JobError | None:
        error = sse.failure(event)
        if error is not None:
            status = error.get("code")
            return self._failed(status if isinstance(status, int) else 500, error)
        required = self.call.new.required_call
        if required is not None and not required.observe(sse.parse_data(event)) and sse.is_last(event):
            return required.error()
        return None

    def _refusal(self, status: int, content: bytes) -> RouteError:
        """The error for a response with an error status, in any of vLLM's shapes."""
        try:
            payload = orjson.loads(content)
        except orjson.JSONDecodeError:
            payload = None
        error = payload.get("error") if isinstance(payload, dict) else None
        if not isinstance(error, dict):
            detail = payload.get("detail") if isinstance(payload, dict) else None
            message = str(detail or f"vLLM answered {status}.")
            error = {"message": message, "type": "Error", "param": None, "code": status}
        return self._failed(status, error)

    def _failed(self, status: int, error: dict[str, Any]) -> RouteError:
        """The error with vLLM's status and error object, in which the field is named.

        Where the worker itself refused the request inside the application, its own error is the failure, and where
        vLLM noted another cause than it reports in the end, that is.
        """
        meter = self.call.meter
        if meter.refusal is not None:
            return RouteError(meter.refusal, anthropic=self.call.rule.anthropic)
        if meter.failure is not None:
            error = meter.failure
            status = error["code"]
        message = str(error.get("message", ""))[:MAX_MESSAGE_CHARS]
        error = error | {"message": message}
        if status < 500:
            body = self.call.new.body
            field = error_fields.field_of(error.get("param"), message, body)
            error = error | {"param": field, "message": error_fields.plain(message, field, body)}
        code = _CODES.get(status, Code.INVALID_INPUT if status < 500 else Code.GENERATION_FAILED)
        if status >= 500 and self.engine.dead:
            code = Code.ENGINE_DEAD
        cause = JobError(code, str(error.get("message", "")), field=error.get("param"))
        return RouteError(cause, status=status, error=error, anthropic=self.call.rule.anthropic)
