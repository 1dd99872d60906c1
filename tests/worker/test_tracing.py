"""Traces: one span per job with its phases below it, and no job that fails because a trace does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llmpod.worker.jobs import job_log
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, replies_of
from tests.worker.scripted import ScriptedEngine, serving, until


class Traces:
    """What a collector would get."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("llmpod")

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    made = Traces()
    monkeypatch.setattr(job_log, "open_tracer", lambda: made.tracer)
    return made


def traced_engine() -> Any:
    engine = ScriptedEngine(prefill_s=0.01)
    engine.traces = True
    return engine


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_job_is_a_span_whose_children_are_what_it_went_through(
    monkeypatch: pytest.MonkeyPatch, traces: Traces
) -> None:
    async with serving(monkeypatch, traced_engine()) as served:
        job_id = await served.submit("my secret question")
        await until(lambda: "chat scripted" in traces.spans)
    job = traces.spans["chat scripted"]
    assert (job.kind, job.parent, job.status.status_code) == (SpanKind.SERVER, None, StatusCode.UNSET)
    children = [traces.spans[name] for name in ("slot_wait", "queue", "prefill", "decode", "delivery")]
    assert len(traces.spans) == 1 + len(children)
    for child, following in zip(children, [*children[1:], None], strict=True):
        assert child.parent is not None
        assert child.parent.span_id == job.context.span_id
        assert child.start_time is not None
        assert child.end_time is not None
        assert job.start_time <= child.start_time <= child.end_time <= job.end_time  # type: ignore[operator]
        assert following is None or child.end_time <= (following.start_time or 0)
    seen = attributes(job)
    assert seen["gen_ai.operation.name"] == "chat"
    assert (seen["gen_ai.request.model"], seen["gen_ai.response.id"]) == ("scripted", job_id)
    assert (seen["gen_ai.usage.input_tokens"], seen["gen_ai.usage.output_tokens"]) == (10, 64)
    assert seen["gen_ai.response.finish_reasons"] == ("length",)
    everything = json.dumps([span.to_json() for span in traces.spans.values()])
    assert "secret" not in everything
    assert "w1 w2" not in everything


async def test_vllm_is_given_the_job_s_span_as_parent(events: Events, traces: Traces) -> None:
    worker = Worker(Settings(), traced_engine(), events.emit)
    record = worker.record({"id": "job-1"})
    assert record.span is not None
    version, trace_id, span_id, _ = record.meter.trace_headers["traceparent"].split("-")  # type: ignore[index]
    record.end("ok")
    (span,) = traces.spans.values()
    assert (version, int(trace_id, 16), int(span_id, 16)) == ("00", span.context.trace_id, span.context.span_id)


@pytest.mark.parametrize(("prompt", "code"), [("fail", "generation_failed"), ("x" * 2000, "prompt_too_long")])
async def test_a_failed_job_says_why_and_only_the_worker_s_failures_are_errors(
    events: Events, traces: Traces, prompt: str, code: str
) -> None:
    await replies_of(Worker(Settings(), traced_engine(), events.emit), {"prompt": prompt})
    job = traces.spans["chat scripted"]
    assert attributes(job)["error.type"] == code
    assert job.status.status_code is (StatusCode.ERROR if code == "generation_failed" else StatusCode.UNSET)


async def test_a_tracer_that_fails_costs_no_job_anything(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def start_span(self, *_: object, **__: object) -> None:
            raise OSError("no collector")

    monkeypatch.setattr(job_log, "open_tracer", Broken)
    replies = await replies_of(Worker(Settings(), traced_engine(), events.emit), {"prompt": "Hello"})
    assert replies[0]["choices"]
    assert events.end_of("job-1")["ok"] is True


async def test_without_an_endpoint_for_traces_there_are_none(events: Events) -> None:
    record = Worker(Settings(), ScriptedEngine(), events.emit).record({"id": "job-1"})  # type: ignore[arg-type]
    assert (record.span, record.meter.trace_headers) == (None, None)
