"""Route jobs: apply policy, call vLLM's application in this process, and convert its response.

vLLM's API is not re-implemented. A stream is returned as text, whole server-sent events; other responses as the JSON
object (or text) that vLLM answered. A response with an error status fails the job, with vLLM's status and error object
in the error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from llmpod.worker.engine.app.asgi import Broken
from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.prompt_check import Judge, PromptCheck
from llmpod.worker.errors import Code, JobError, RouteError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs import inputs, limits, native_reply, route_catalog, tool_choice
from llmpod.worker.jobs.job_log import JobRecord
from llmpod.worker.jobs.route_catalog import Rule
from llmpod.worker.profile.file import Profile
from llmpod.worker.routes import body_fields, error_fields, media, prompt_fields, rewrite
from llmpod.worker.routes.answer import Reply, RouteAnswer
from llmpod.worker.routes.call import RouteCall
from llmpod.worker.routes.rewrite import Rewritten
from llmpod.worker.settings import Settings


@dataclass
class Routes:
    """Answers route jobs through one engine's application."""

    settings: Settings
    engine: Engine
    profile: Profile | None
    judge: Judge | None
    emit: Emit
    status: Callable[[], dict[str, Any]] = dict  # what the worker's own route /status answers

    async def answer(self, request: inputs.RouteRequest, record: JobRecord) -> AsyncGenerator[Reply, None]:
        """Yield the replies of one route job.

        Raises:
            JobError: what policy refuses, and what vLLM answered with an error status or broke off.
        """
        if request.route.partition("?")[0].removesuffix("/") == "/status":
            yield self._own(request, record)
            return
        call = await record.size.aside(self._call, request, record)
        files = await record.size.aside(self._prepare, call)
        if files is not None:
            await files.fetch()
        exchange = call.exchange(self.engine.application.asgi, self.settings)
        answer = RouteAnswer(call, exchange, self.engine)
        try:
            async with exchange:
                await exchange.started()
                record.content_type = exchange.headers.get("content-type")
                async with aclosing(answer.replies()) as replies:
                    async for reply in replies:
                        yield reply
                if call.meter.refusal is not None:  # vLLM's application continued without the refused request
                    raise call.meter.refusal
        except Broken as error:
            cause = error.__cause__
            self.emit("route_broken", level="error", request_id=record.id, cause=type(cause).__name__)
            raise answer.broken_off() from None
        finally:
            record.max_tokens = call.max_tokens
            record.finish_route()

    def _own(self, request: inputs.RouteRequest, record: JobRecord) -> Reply:
        """The reply of the worker's own route."""
        rule = route_catalog.RULES["/status"]
        record.route = rule.path
        record.start_route(stream=False, model=None, prompt_len=0)
        route_catalog.method_for(rule, request.method, has_body=request.body is not None)
        reply = self.status()
        record.finish_route()
        return reply

    def _call(self, request: inputs.RouteRequest, record: JobRecord) -> RouteCall:
        """Resolve the route of a request and rewrite its body."""
        record.route = request.route[:200]
        named = route_catalog.asked_model(request.route)
        path, query = ("/v1/models", "") if named else route_catalog.clean(request.route, field=request.shape)
        exists = self.engine.application.has(path)
        rule = route_catalog.rule_for(path, self.settings.allowed_routes, exists=exists)
        method = route_catalog.method_for(rule, request.method, has_body=request.body is not None)
        fields = self._fields(rule, method, path)
        wanted = rewrite.resolve_model(named, self.engine.application.names)
        given = request.body or {}
        new: Rewritten | None = None
        try:
            if fields is not None:
                settled = body_fields.settle(rule, given, fields, self.engine.sampling_defaults)
                given, record.adapted = settled.body, settled.as_dict()
            new = rewrite.rewrite(rule, given, self.settings, max_model_len=self.engine.max_model_len, fields=fields)
        finally:
            prompt = prompt_fields.prompt_of(given)
            model = given.get("model")
            record.start_route(
                stream=request.stream,
                model=model[:200] if isinstance(model, str) else None,
                prompt_len=prompt.chars,
                max_tokens=new.max_tokens if new else None,
                client=new.client if new else None,
                texts=prompt.texts if new else (),
            )
        meter = record.meter
        meter.max_tokens = None if new.max_tokens is None else max(1, new.max_tokens.effective)
        meter.constraint = error_fields.field_from_message("schema", new.body)
        meter.calls = error_fields.field_from_message("structural tag", new.body)
        meter.most = limits.MAX_SCORED if rule.scores else self.settings.max_n
        if rule.path == "/generative_scoring":  # it keeps one token for the answer, and one shows that it cut nothing
            meter.longest_prompt = self.engine.max_model_len - 2
        meter.parsed = self.engine.application.parses(given, fields)
        return RouteCall(record, rule, method, path, query, given, prompt, new, wanted)

    def _fields(self, rule: Rule, method: str, path: str) -> Collection[str] | None:
        """What the body of an open route may hold, if vLLM says; an error where this model does not have the route."""
        route = self.engine.application.route(method, path)
        if route is not None:
            return route.fields
        generates, existing = self.engine.generates, self.engine.application.paths
        raise route_catalog.absent(rule, method, path, generates=generates, existing=existing)

    def _prepare(self, call: RouteCall) -> media.Files | None:
        """Check prompts and files of a body; returns the files to download."""
        if not call.given or call.rule.kind == "info":
            return None
        self._check_tools(call)
        self._check_prompt(call)
        self._name_model(call)
        self._guard(call)
        return self._check_media(call)

    def _check_tools(self, call: RouteCall) -> None:
        if call.generates and tool_choice.wanted(call.given) and not self.engine.application.calls_tools:
            raise JobError(
                Code.UNSUPPORTED,
                "This worker reads no tool calls: its operator can set TOOL_CALL_PARSER to the one for its model "
                "(ENABLE_AUTO_TOOL_CHOICE=false turns it off).",
                field="tools",
            )

    def _check_prompt(self, call: RouteCall) -> None:
        """Check prompt length on every route, and the policy on routes that generate."""
        if call.rule.kind == "embed":
            return  # each input has been checked (rewrite.py); together they have no limit but their number
        prompt = call.prompt
        self._check_chars(call, prompt.chars + len(prompt.token_ids))
        decoded = self.engine.application.decode(prompt.token_ids)
        self._check_chars(call, prompt.chars + len(decoded))
        if call.rule.kind == "tokens":
            limits.check_bytes(prompt.texts, field=prompt.field)
        if not call.generates:
            return
        limits.check_words(call.given)
        limits.check_constraint(call.given, self.settings)
        call.record.constrained = limits.constrained(call.given)
        check = PromptCheck(
            self.settings,
            self.profile,
            self.judge,
            self.engine.application.frame,
            prompt.field,
            call.record,
            tools=bool(call.given.get("tools")),
            adds_up=bool(call.rule.max_tokens) and not call.rule.form,
        )
        if self.profile is not None:
            call.record.intent = self.profile.intent_of((*prompt.texts, decoded)).name
        check.check_texts(*prompt.texts, decoded)
        self.engine.application.refuse_control_ids(prompt.token_ids, field=prompt.field)

    def _check_chars(self, call: RouteCall, chars: int) -> None:
        limits.check_chars(chars, self.settings, field=call.prompt.field)
        if call.generates and not prompt_fields.truncated(call.given):
            self.engine.context.check(chars, field=call.prompt.field, prompts=prompt_fields.count(call.given))

    def _name_model(self, call: RouteCall) -> None:
        if not call.rule.form:
            model = rewrite.resolve_model(call.given.get("model"), self.engine.application.names)
            call.new.body["model"] = model or self.engine.model_name
        call.record.model = call.new.body.get("model")

    def _guard(self, call: RouteCall) -> None:
        """Mark control tokens in prompts; texts to embed have no roles, and are left unchanged."""
        if call.rule.kind == "embed":
            return
        body = call.new.body
        for name in prompt_fields.PROMPT_FIELDS:
            if name in body:
                body[name] = self.engine.application.guard(body[name], field=name)

    def _check_media(self, call: RouteCall) -> media.Files | None:
        """Check files on every route; download them for a model that accepts them."""
        if call.rule.form:
            return None
        files = media.find(call.new.body)
        if files and self.engine.application.takes_media:
            call.new.body = orjson.loads(orjson.dumps(call.new.body))  # the job's input stays as it came
            return media.Files(self.settings, media.find(call.new.body))
        media.Files(self.settings, files)
        return None


def explain(error: JobError, job_input: object) -> JobError:
    """Convert an error for the job's client: on a route, with the route's error object."""
    if isinstance(error, RouteError) or not isinstance(job_input, dict):
        return error
    route = job_input.get("openai_route", job_input.get("route"))
    if route is None:
        return error
    return RouteError(error, anthropic=str(route).startswith("/v1/messages"))


def final_replies(error: JobError, record: JobRecord, *, model: str) -> Iterator[Reply]:
    """The last replies of a failed job: the stream's last chunk, if it has started, and the error.

    A native job that the profile's policy blocks is not a failure: it is COMPLETED with a reply that reports it.
    """
    if error.code is Code.BLOCKED and not isinstance(error, RouteError):
        yield native_reply.blocked(error, model=model, request_id=record.id)
        return
    if isinstance(error, RouteError):
        if record.streaming:
            yield error.as_event(record.id)
    elif record.stream:
        if error.last_reply is not None:
            yield error.last_reply
        yield native_reply.stream_error(error.as_dict(record.id))
    yield {"error": error.as_json(record.id)}
