"""Call of one of vLLM's routes: request, rewritten body and result."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Any

import orjson

from llmpod.worker.engine.app.asgi import App, Exchange
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits, metering
from llmpod.worker.jobs.job_log import JobRecord
from llmpod.worker.jobs.route_catalog import RULES, Rule
from llmpod.worker.routes import multipart
from llmpod.worker.routes.prompt_fields import Prompt
from llmpod.worker.routes.rewrite import Rewritten
from llmpod.worker.settings import Settings


@dataclass
class RouteCall:
    """State of one route call."""

    record: JobRecord
    rule: Rule
    method: str
    path: str
    query: str
    given: dict[str, Any]  # the client's body
    prompt: Prompt  # prompts in the body
    new: Rewritten  # the body as vLLM gets it
    wanted_model: str | None = None  # of /v1/models, the one that is asked for

    @property
    def meter(self) -> metering.JobMeter:
        """The job's meter."""
        return self.record.meter

    @property
    def generates(self) -> bool:
        """Whether the route generates text."""
        return self.rule.kind == "generate"

    @property
    def max_tokens(self) -> limits.MaxTokens | None:
        """max_tokens as the engine got it; the requests of a beam search have one token each."""
        max_tokens = self.new.max_tokens
        if max_tokens is None or self.given.get("use_beam_search"):
            return max_tokens
        return max_tokens.fitting(self.record.meter.granted)

    @property
    def reported_limits(self) -> dict[str, Any] | None:
        """The reply's `limits`: what was changed, on routes whose answers are objects of a known form."""
        max_tokens = self.max_tokens
        changed = {"max_tokens": max_tokens.as_dict()} if max_tokens is not None and max_tokens.reason else {}
        return {**changed, **self.record.adapted} or None if self.rule.path in RULES else None

    def exchange(self, app: App, settings: Settings) -> Exchange:
        """The ASGI exchange for this call, not started yet.

        Raises:
            JobError: the body does not fit the form that the route takes, or JSON.
        """
        headers = {"x-request-id": self.record.id}
        body = b""
        if self.rule.form:
            body, headers["content-type"] = multipart.encode(self.new.body, settings)
        elif self.method != "GET":
            body, headers["content-type"] = _json(self.new.body), "application/json"
        context = contextvars.copy_context()
        context.run(metering.current_meter.set, self.meter)
        exchange = Exchange(
            *(app, self.method, self.path),
            query=self.query,
            headers=headers,
            body=body,
            context=context,
            continues=self.meter.continues,
        )
        self.meter.wanted = exchange.wanted
        return exchange


def _json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise JobError(Code.INVALID_INPUT, f"The body holds what JSON cannot: {error}.") from None
