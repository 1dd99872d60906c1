"""ASGI application of the HTTP server: requests become jobs of `Worker.handle`, and their replies responses.

/ping                   200: ready, 503: draining or failed (loading.py answers while the model loads)
POST /native            a native job, {"input": {…}}, as on RunPod's /run; server-sent events if it streams
any open route          vLLM's (docs/routes.md)
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, MutableMapping
from contextlib import aclosing, closing
from typing import Any

from llmpod.worker.errors import Code, JobError
from llmpod.worker.http.body import BUDGET_BODIES, Body, Budget, Gone, Receive
from llmpod.worker.http.response import READER_S, Response, Send, SlowReaderError
from llmpod.worker.jobs import route_catalog
from llmpod.worker.jobs.interruption import Interruption
from llmpod.worker.jobs.route_catalog import Rule
from llmpod.worker.jobs.stream_rate import Pace
from llmpod.worker.routes import routes
from llmpod.worker.worker import Worker

NATIVE = "/native"
_NATIVE_RULE = Rule(NATIVE, ("POST",), "generate")
ENDED_S = 5.0
"""How long interrupted requests may take to write their errors."""

Scope = MutableMapping[str, Any]


class Application:
    """The server's requests, of one worker whose engine has started."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.refusal: JobError | None = None  # why no further requests are taken
        self.most = worker.settings.max_concurrency or 2 * worker.engine_capacity
        self.budget = Budget(BUDGET_BODIES * worker.settings.max_body_bytes)
        settings = worker.settings
        self.pace = Pace(settings.min_stream_gap_ms / 1000, settings.max_stream_chunks_per_s)
        self.requests: set[Request] = set()
        self.admitted: set[Request] = set()  # those that are read or run as jobs
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http", "the server offers nothing else"
        request = Request(self, scope, receive, send)
        if scope["path"] == self.worker.settings.health_check_path:
            await request.answer_ping()
            return
        self.requests.add(request)
        self._idle.clear()
        try:
            await request.run()
        finally:
            self.admitted.discard(request)
            self.requests.discard(request)
            if not self.requests:
                self._idle.set()

    def interrupt(self, error: JobError) -> None:
        """Take no further requests, and end the running ones with `error`."""
        self.refusal = error
        for request in self.requests:
            request.interrupt(error)

    async def drain(self, seconds: float, error: JobError) -> None:
        """Take no further requests, let running ones finish for so long, and end the rest with `error`."""
        self.refusal = error
        await self._until_idle(seconds)
        self.interrupt(error)
        await self._until_idle(ENDED_S)

    async def _until_idle(self, seconds: float) -> None:
        waiting = asyncio.create_task(self._idle.wait())
        await asyncio.wait((waiting,), timeout=seconds)
        waiting.cancel()


class Request:
    """One request: admitted, read, run as a job, answered."""

    def __init__(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._worker = app.worker
        server = scope["extensions"]["llmpod"]
        self._abort: Callable[[], None] = server["abort"]
        self._watch: Callable[[Callable[[], None]], Callable[[], None]] = server["watch"]
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._method = "GET" if scope["method"] == "HEAD" else scope["method"]
        query = scope["query_string"].decode("latin-1")
        self._path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        self._route = f"{self._path}?{query}" if query else self._path
        self._native = self._path == NATIVE
        self._gone = False
        self._input: Any = None if self._native else {"route": self._route}
        self._record = self._worker.record({"id": _job_id(self._headers.get("x-request-id", ""))})
        self._record.route = "native" if self._native else self._path[:200]
        self._interruption = Interruption(self._record)
        self._body = Body(receive, self._headers, self._worker.settings, app.budget)
        self._response = Response(send, self._record, self._body, native=self._native, paused=server["paused"])
        self._response.closes = app.refusal is not None

    def interrupt(self, error: JobError) -> None:
        """End the request with `error`."""
        self._interruption.interrupt(error)

    async def answer_ping(self) -> None:
        """Answer a health check."""
        if self._app.refusal is None and not self._worker.engine.dead:
            await self._response.whole(200, {"content-type": "application/json"}, b'{"status":"ready"}')
        else:
            await self._response.whole(503, {"content-type": "application/json"}, b'{"status":"ending"}')

    async def run(self) -> None:
        """Run the request to the last byte of its response."""
        try:
            try:
                await self._interruption.run(self._work, self._worker.settings.max_job_seconds)
            except JobError as error:
                await self._fail(error)
            await self._response.finish()
        except SlowReaderError:
            self._record.fail(JobError(Code.CANCELLED, f"The client did not read for {READER_S:g} s."))
            self._abort()
            await asyncio.sleep(0)  # in which the server notices
        except Gone:
            self._record.end("cancelled")
        finally:
            self._body.release()

    async def _work(self) -> None:
        rule = self._rule()
        methods = (*rule.methods, "HEAD") if "GET" in rule.methods else rule.methods
        if self._method == "OPTIONS":
            await self._response.whole(204, {"allow": ", ".join((*methods, "OPTIONS"))})
            return
        self._admit(methods)
        content = await self._body.value(rule.max_tokens if rule.form else None)
        self._record.arrived()
        unwatch = self._watch(self._client_gone)
        try:
            replies = self._worker.handle(self._job(content), self._record)
            with closing(self._app.pace.stream()) as turns:
                async with aclosing(replies):
                    async for reply in replies:
                        await self._response.reply(reply)
                        if self._record.stream and not self._record.generated:
                            turns.take()
                            await turns.next()
        finally:
            unwatch()

    def _admit(self, methods: tuple[str, ...]) -> None:
        """Refuse what is not to be read.

        Raises:
            JobError: the worker ends or is full, or the path does not take the method.
        """
        if self._app.refusal is not None:
            raise self._app.refusal
        if self._method not in methods:
            message = f"{self._path[:200]} takes {' or '.join(methods)}, not {self._method[:20]}."
            raise JobError(Code.METHOD_NOT_ALLOWED, message, allow=methods)
        if self._method == "GET":  # costs nothing, and tells what is going on
            return
        if len(self._app.admitted) >= self._app.most:
            message = f"The worker is full: it holds {self._app.most} requests."
            raise JobError(Code.OVERLOADED, message, **self._worker.slots.load())
        self._app.admitted.add(self)

    def _rule(self) -> Rule:
        """The rule of the path.

        Raises:
            JobError: not_found, or route_closed.
        """
        if self._native:
            return _NATIVE_RULE
        named = route_catalog.asked_model(self._route)
        path = "/v1/models" if named else route_catalog.clean(self._route, field="path")[0]
        exists = self._worker.engine.application.has(path)
        try:
            return route_catalog.rule_for(path, self._worker.settings.allowed_routes, exists=exists)
        except JobError as error:
            if error.code is Code.ROUTE_CLOSED and not exists:
                raise JobError(Code.NOT_FOUND, f"{path} is not a path of this worker.", field="path") from None
            raise

    def _job(self, content: Any) -> dict[str, Any]:
        if self._native:
            if not isinstance(content, dict) or "input" not in content:
                message = 'The body must be a job: {"input": {"prompt": "Hello"}}.'
                raise JobError(Code.INVALID_INPUT, message, field="input")
            self._input = content["input"]
        else:
            if content is not None and not isinstance(content, dict):
                raise JobError(Code.INVALID_INPUT, "The body must be a JSON object.")
            self._input = {"route": self._route, "method": self._method, "body": content}
        return {"id": self._record.id, "input": self._input}

    def _client_gone(self) -> None:
        """Interrupt the job."""
        if not self._response.ended:
            self._gone = True
            self.interrupt(JobError(Code.CANCELLED, "The client closed the connection."))

    async def _fail(self, error: JobError) -> None:
        """End the record, and write the error unless the job has done so."""
        failed = routes.explain(error, self._input)
        self._record.fail(failed)
        if not self._gone:
            for reply in routes.final_replies(failed, self._record, model=self._worker.engine.model_name):
                await self._response.reply(reply)


def _job_id(given: str) -> str:
    """A new id. It begins with the client's, but is not it: jobs of the same id would share what is theirs alone."""
    made = uuid.uuid4().hex
    return f"{given}-{made[:12]}" if re.fullmatch(r"[\w.:-]{1,64}", given, re.ASCII) else made
