"""A job that calls one of vLLM's routes: policy, then vLLM's own application in this process, then its answer.

Nothing of vLLM's API is made again here. What is streamed comes as text, whole server-sent events; what is not comes as
the one JSON object (or text) that vLLM answered. An answer with an error status is a failed job, with vLLM's status
and error object in it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import contextvars
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractContextManager, aclosing
from typing import Any

import orjson

from llmpod.worker import answers, inputs, limits, media, route_policy, served, sse, tools
from llmpod.worker.asgi import Broken, Exchange
from llmpod.worker.engine import Engine
from llmpod.worker.errors import Code, JobError, RouteError
from llmpod.worker.events import Emit
from llmpod.worker.profile import Profile
from llmpod.worker.record import JobRecord
from llmpod.worker.route_policy import Rewritten, Rule
from llmpod.worker.settings import Settings

Reply = dict[str, Any] | str

_CODES = {404: Code.NOT_FOUND, 429: Code.OVERLOADED, 501: Code.UNSUPPORTED, 503: Code.OVERLOADED}


class Routes:
    """Answers route jobs with one engine's application."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        profile: Profile | None,
        emit: Emit,
        take: Callable[[int], Awaitable[AbstractContextManager[Any]]],
    ) -> None:
        """`take`: waits for so many places in the engine."""
        self.take = take
        self.emit = emit
        self.settings = settings
        self.engine = engine
        self.profile = profile

    async def answer(self, request: inputs.OpenAIRequest, record: JobRecord) -> AsyncGenerator[Reply, None]:
        """The replies of one route job.

        Raises:
            JobError: what policy refuses, and what vLLM answered with an error status or broke off.
        """
        record.route = request.route[:200]
        shape = "route" if isinstance(request, inputs.RouteRequest) else "openai_route"
        path, query = route_policy.clean(request.route, field=shape)
        rule = route_policy.rule_for(path, self.settings.allowed_routes)
        method = route_policy.method_for(rule, request.method, has_body=request.body is not None)
        self._check_served(method, path)
        new, watch = await self._prepare(rule, request, record, self.engine.fields_of(method, path))

        headers = {"x-request-id": record.id}
        content = b""
        if rule.form:
            content, headers["content-type"] = form(new.body, self.settings)
        elif method != "GET":
            content, headers["content-type"] = _json(new.body), "application/json"
        context = contextvars.copy_context()
        context.run(served.current.set, watch)
        exchange = Exchange(self.engine.app, method, path, query=query, headers=headers, body=content, context=context)
        watch.wanted = exchange.wanted
        try:
            async with contextlib.AsyncExitStack() as stack:
                if rule.kind in ("generate", "embed"):
                    stack.enter_context(await self.take(new.answers))
                record.submitted = time.monotonic()
                await stack.enter_async_context(exchange)
                await exchange.started()
                async with aclosing(self._replies(exchange, rule, record, new, watch)) as replies:
                    async for reply in replies:
                        yield reply
        except Broken as error:
            cause = error.__cause__
            self.emit("route_broken", level="error", request_id=record.id, cause=type(cause).__name__)
            said = {"message": "The engine failed at this job.", "type": "InternalServerError", "code": 500}
            raise self._failed(500, said | {"param": None}, rule, new.body) from None
        finally:
            record.finish_route(watch)

    def _check_served(self, method: str, path: str) -> None:
        """The route is open; whether this model has it is another question."""
        if self.engine.has_route(method, path):
            return
        runner = "generates text" if self.engine.generates else "embeds and scores (RUNNER=pooling)"
        other = "RUNNER=pooling" if self.engine.generates else "RUNNER=generate"
        raise JobError(
            Code.NOT_FOUND,
            f"{method} {path} is not among this model's routes. This worker {runner}; one worker does either, "
            f"and the other side needs a worker with {other} or a model that can do it.",
            field="route",
        )

    async def _prepare(
        self, rule: Rule, request: inputs.OpenAIRequest, record: JobRecord, fields: Collection[str] | None
    ) -> tuple[Rewritten, served.Watch]:
        """The body as vLLM gets it, and what the engine may do with it."""
        given = request.body or {}
        prompt = route_policy.prompt_of(given)
        try:
            new = route_policy.rewrite(rule, given, self.settings)
        except JobError:
            record.start_route(stream=request.stream, model=_short(given.get("model")), prompt_len=prompt.chars)
            raise
        record.start_route(
            stream=request.stream,
            model=_short(given.get("model")),
            prompt_len=prompt.chars,
            max_tokens=new.max_tokens,
            client=new.client,
            texts=prompt.texts,
        )
        watch = served.Watch()
        if new.max_tokens is not None:
            watch.max_tokens = max(1, new.max_tokens.effective)
        if not given or rule.kind == "info":
            return new, watch

        if fields is not None:
            route_policy.refuse_unknown(given, fields)
        if rule.kind == "generate" and tools.wanted(given) and not self.engine.calls_tools:
            raise JobError(
                Code.UNSUPPORTED,
                "This worker reads no tool calls: its operator can set TOOL_CALL_PARSER to the one for its model "
                "(ENABLE_AUTO_TOOL_CHOICE=false turns it off).",
                field="tools",
            )
        decoded = self.engine.decode(prompt.token_ids)
        limits.check_chars(prompt.chars + len(decoded), self.settings, field=prompt.field)
        if rule.kind == "generate":
            limits.check_constraint(given, self.settings)
            self._check_policy((*prompt.texts, decoded), prompt.field, record)
            self.engine.refuse_control_ids(prompt.token_ids, field=prompt.field)
        if not rule.form:
            model = route_policy.resolve_model(given.get("model"), self.engine.names)
            new.body["model"] = model or self.engine.model_name
        record.model = new.body.get("model")
        if rule.kind != "embed":
            for name in route_policy.PROMPT_FIELDS:
                if name in new.body:
                    new.body[name] = self.engine.guard(new.body[name], field=name)
        if not rule.form:
            files = media.find(_copied(new.body))
            for item in files:
                media.check(item, self.settings)
            if files and self.engine.takes_media:
                new.body = _copied(new.body, deep=True)
                await media.inline(media.find(new.body), self.settings)
        return new, watch

    def _check_policy(self, texts: tuple[str, ...], field: str, record: JobRecord) -> None:
        if self.profile is None:
            return
        intent = self.profile.intent_of(texts)
        record.intent = intent.name
        if intent.blocked is not None:
            raise JobError(Code.BLOCKED, intent.blocked, field=field, intent=intent.name)

    async def _replies(
        self, exchange: Exchange, rule: Rule, record: JobRecord, new: Rewritten, watch: served.Watch
    ) -> AsyncGenerator[Reply, None]:
        if exchange.status >= 300:
            raise self._refusal(exchange.status, await exchange.whole(), rule, new.body)
        limited = record.max_tokens is not None and record.max_tokens.reason and rule.path in route_policy.RULES
        reported = record.max_tokens.as_dict() if record.max_tokens and limited else None
        if exchange.content_type == "text/event-stream":
            async with aclosing(self._events(exchange, rule, reported, new, watch)) as chunks:
                async for chunk in chunks:
                    record.streaming = True
                    record.generated = watch.ended()
                    yield self.engine.unguard(chunk).decode()
            return
        content = self.engine.unguard(await exchange.whole())
        if exchange.content_type == "application/json":
            answer = orjson.loads(content)
            if not isinstance(answer, dict):
                yield content.decode()
                return
            if reported is not None:
                answer["limits"] = {"max_tokens": reported}
            # A key `error` at the top is how the SDK tells a failure; null says there was none (responses have it).
            if answer.get("error"):
                raise self._refusal(500, content, rule, new.body)
            if new.owed_call is not None and not new.owed_call.see(answer):
                raise new.owed_call.missing(watch.finish_reason)
            yield answer
        elif not content:
            yield {"status": exchange.status}
        elif exchange.content_type.startswith("text/"):
            yield content.decode(errors="replace")
        else:
            yield {"content_type": exchange.content_type, "base64": base64.b64encode(content).decode()}

    async def _events(
        self,
        exchange: Exchange,
        rule: Rule,
        reported: dict[str, Any] | None,
        new: Rewritten,
        watch: served.Watch,
    ) -> AsyncGenerator[bytes, None]:
        """The stream in chunks of whole events; the first at once, then whatever waits."""
        splitter = sse.Splitter()
        owed = new.owed_call
        failure: JobError | None = None
        async with aclosing(exchange.pieces(watch.ended)) as pieces:
            async for piece in pieces:
                ready = splitter.feed(piece)
                for index, event in enumerate(ready):
                    if (error := sse.failure(event)) is not None:
                        status = error.get("code")
                        failure = self._failed(status if isinstance(status, int) else 500, error, rule, new.body)
                    elif owed is not None and not owed.see(sse.said(event)) and sse.is_last(event):
                        failure = owed.missing(watch.finish_reason)
                    if failure is not None:
                        ready = ready[:index]
                        break
                if ready and reported is not None:
                    ready[0] = sse.with_field(ready[0], "limits", {"max_tokens": reported})
                    reported = None
                for chunk in sse.merge(ready):
                    if len(chunk) > sse.MAX_YIELD_BYTES:
                        raise JobError(
                            Code.RESULT_TOO_LARGE,
                            f"One event has {len(chunk)} bytes; RunPod carries {sse.MAX_YIELD_BYTES} at a time.",
                        )
                    yield chunk
                if failure is not None:
                    raise failure
        if splitter.rest().strip():
            raise JobError(Code.GENERATION_FAILED, "The stream broke off inside an event.")

    def _refusal(self, status: int, content: bytes, rule: Rule, body: dict[str, Any]) -> RouteError:
        try:
            said = orjson.loads(content)
        except orjson.JSONDecodeError:
            said = None
        error = said.get("error") if isinstance(said, dict) else None
        if not isinstance(error, dict):
            detail = said.get("detail") if isinstance(said, dict) else None
            message = str(detail or f"vLLM answered {status}.")
            error = {"message": message, "type": "Error", "param": None, "code": status}
        return self._failed(status, error, rule, body)

    def _failed(self, status: int, error: dict[str, Any], rule: Rule, body: dict[str, Any]) -> RouteError:
        if not error.get("param") and status < 500:
            error = error | {"param": route_policy.blamed(str(error.get("message", "")), body)}
        code = _CODES.get(status, Code.INVALID_INPUT if status < 500 else Code.GENERATION_FAILED)
        if status >= 500 and self.engine.dead:
            code = Code.ENGINE_DEAD
        param = error.get("param")
        if isinstance(param, str):  # without the names of the classes among which pydantic looked for a fit
            steps = param.removeprefix("body.").split(".")
            error = error | {"param": ".".join(step for step in steps if not step[:1].isupper())}
        cause = JobError(code, str(error.get("message", "")), field=error.get("param"))
        return RouteError(cause, status=status, error=error, anthropic=rule.anthropic)


def explain(error: JobError, job_input: object) -> JobError:
    """A failure as the job's client reads it: on a route, with the route's error object in it."""
    if isinstance(error, RouteError) or not isinstance(job_input, dict):
        return error
    route = job_input.get("openai_route", job_input.get("route"))
    if route is None:
        return error
    return RouteError(error, anthropic=str(route).startswith("/v1/messages"))


def farewell(error: JobError, record: JobRecord) -> Iterator[Reply]:
    """The last replies of a job that failed: its stream's last chunk, if it has begun one, and the error."""
    if isinstance(error, RouteError):
        if record.streaming:
            yield error.as_event(record.id)
    elif record.stream:
        yield answers.stream_error(error.as_dict(record.id))
    yield {"error": error.as_json(record.id)}


def form(body: dict[str, Any], settings: Settings) -> tuple[bytes, str]:
    """A body as multipart/form-data, and its content type; `file` comes as base64 or a data URI, `filename` beside it.

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


def _copied(body: dict[str, Any], *, deep: bool = False) -> dict[str, Any]:
    copied: dict[str, Any] = orjson.loads(orjson.dumps(body)) if deep else body
    return copied


def _json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise JobError(Code.INVALID_INPUT, f"The body holds what JSON cannot: {error}.") from None


def _short(model: object) -> str | None:
    return model[:200] if isinstance(model, str) else None
