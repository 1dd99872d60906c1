"""Traces: a span per job by OpenTelemetry's conventions for generative AI, the parent of vLLM's own span.

vLLM sets up the exporter when OTLP_TRACES_ENDPOINT is set; without it there is no tracer and no span. Spans hold no
text of prompts or answers. https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

OPERATIONS = {
    "native": "chat",
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
}
"""Routes by the conventions' names of operations; others keep their path."""
PHASES = ("wait", "queue", "prefill", "decode")
"""What a job goes through in this order: for a slot, then vLLM's own. Each is a child, if the `end` line has it."""


def open_tracer() -> Any:
    """The tracer of the provider that vLLM has set up in this process."""
    from opentelemetry import trace

    return trace.get_tracer("llmpod")


class JobSpan:
    """The span of one job. Nothing here raises: a trace must not cost a job its result."""

    def __init__(self, tracer: Any, job_id: str, model: str) -> None:
        """`model`: the served one."""
        self.headers: dict[str, str] = {}  # for vLLM, whose span becomes a child
        self._tracer = tracer
        self._job_id = job_id
        self._model = model
        self._began_ns = time.time_ns()
        self._described_ns: int | None = None
        self._span: Any = None
        with contextlib.suppress(Exception):
            from opentelemetry.trace import SpanKind, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            self._span = tracer.start_span("job", kind=SpanKind.SERVER, start_time=self._began_ns)
            self._context = set_span_in_context(self._span)
            TraceContextTextMapPropagator().inject(self.headers, self._context)

    def describe(self, end: Mapping[str, Any]) -> None:
        """Take the fields of the job's `end` line."""
        with contextlib.suppress(Exception):
            self._described_ns = time.time_ns()
            route = str(end.get("route", ""))
            operation = OPERATIONS.get(route, route)
            model = end.get("model") or self._model
            self._span.update_name(f"{operation} {model}")
            attributes = {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.response.id": self._job_id,
                "gen_ai.request.max_tokens": (end.get("max_tokens") or {}).get("effective"),
                "gen_ai.usage.input_tokens": end.get("prompt_tokens"),
                "gen_ai.usage.output_tokens": end.get("tokens_generated"),
                "gen_ai.usage.cache_read.input_tokens": end.get("cached_tokens"),
                "gen_ai.response.finish_reasons": [end["finish_reason"]] if end.get("finish_reason") else None,
                "error.type": end.get("error"),
                "llmpod.outcome": end.get("outcome"),
                "llmpod.route": route,
            }
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})
            if end.get("outcome") in ("error", "timeout"):
                from opentelemetry.trace import Status, StatusCode

                self._span.set_status(Status(StatusCode.ERROR))
            at_ns = self._began_ns
            for phase in PHASES:
                taken_ms = end.get(f"{phase}_ms")
                if taken_ms is not None:
                    at_ns = self._child("slot_wait" if phase == "wait" else phase, at_ns, at_ns + int(taken_ms * 1e6))

    def close(self, *, delivered: bool = False) -> None:
        """End the span; `delivered`: the time since `describe` was the delivery's."""
        with contextlib.suppress(Exception):
            now_ns = time.time_ns()
            if delivered and self._described_ns is not None:
                self._child("delivery", self._described_ns, now_ns)
            self._span.end(end_time=now_ns)

    def _child(self, name: str, start_ns: int, end_ns: int) -> int:
        self._tracer.start_span(name, context=self._context, start_time=start_ns).end(end_time=end_ns)
        return end_ns
