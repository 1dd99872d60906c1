"""A real worker's numbers and traces where they arrive: at a Pushgateway, in the log, at a collector, on /metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import prometheus_client
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from llmpod.worker.engine.engine import Engine
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, replies_of
from tests.worker.metrics.gateway import Gateway
from tests.worker.test_entry import events as lines_of
from tests.worker.test_entry import run

pytestmark = pytest.mark.process

CHAT = '{"input": {"route": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "secret"}]}}}'


@contextlib.contextmanager
def default_registry() -> Iterator[Metrics]:
    """Metrics where vLLM's application looks for them, for once."""
    before = set(prometheus_client.REGISTRY._collector_to_names)
    try:
        yield Metrics(prometheus_client.REGISTRY)
    finally:
        for collector in set(prometheus_client.REGISTRY._collector_to_names) - before:
            prometheus_client.REGISTRY.unregister(collector)


async def test_the_metrics_route_has_the_worker_s_metrics_beside_vllm_s(engine: Engine, events: Events) -> None:
    with default_registry() as metrics:
        worker = Worker(Settings(), engine, events.emit, metrics)
        await replies_of(worker, {"prompt": "Hello"}, "job-1")
        await replies_of(worker, {"prompt": "x" * 2000}, "job-2")
        [text] = [reply async for reply in worker.handle({"id": "job-3", "input": {"route": "/metrics"}})]
    samples = [sample for family in text_string_to_metric_families(str(text)) for sample in family.samples]
    jobs = {s.labels["outcome"]: s.value for s in samples if s.name == "llmpod_jobs_total"}
    assert jobs == {"ok": 1, "rejected": 1}
    assert [s.value for s in samples if s.name == "llmpod_ttft_seconds_count"] == [1]
    assert [s for s in samples if s.name.startswith("vllm:")]


@pytest.mark.engine
@pytest.mark.slow
def test_a_worker_pushes_logs_and_traces_what_it_does() -> None:
    gateway = Gateway()
    try:
        done = run(
            *("--test_input", CHAT),
            METRICS_PUSH_URL=f"http://{gateway.address}",
            METRICS_PUSH_SECONDS="1",
            SNAPSHOT_SECONDS="1",
            RUNPOD_ENDPOINT_ID="abc",
            RUNPOD_POD_ID="pod1",
            OTLP_TRACES_ENDPOINT=f"http://{gateway.address}/v1/traces",
            OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf",
        )
    finally:
        gateway.close()
    assert (done.returncode, done.stderr) == (0, "")
    # Pushed, and gone when the worker is.
    assert gateway.methods("/metrics/job/llmpod/endpoint/abc/worker/pod1")[-2:] == ["PUT", "DELETE"]
    pushed = text_string_to_metric_families(gateway.bodies("/metrics/")[-1].decode())
    names = {(s.name, s.value) for family in pushed for s in family.samples if s.name == "llmpod_jobs_total"}
    assert names == {("llmpod_jobs_total", 1)}
    snapshots = [line["metrics"] for line in lines_of(done) if line["event"] == "snapshot"]
    assert snapshots[-1]["llmpod_jobs_total"] == {"/v1/chat/completions,ok,none": 1}
    # A span with its phases, and vLLM's own below it.
    spans: dict[str, Span] = {}
    for body in gateway.bodies("/v1/traces"):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                spans |= {span.name: span for span in scope.spans}
    job = spans["chat llmpod-demo"]
    for name in ("slot_wait", "queue", "prefill", "decode", "llm_request"):
        assert (spans[name].trace_id, spans[name].parent_span_id) == (job.trace_id, job.span_id), name
    attributes = {one.key: one.value for one in job.attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value > 0
    assert not [body for body in gateway.bodies("/") if b"secret" in body]
