"""Metrics: every `end` line counts once, under labels from closed sets, and a number never costs a job its result."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmpod import __version__
from llmpod.metric import OTHER
from llmpod.worker.errors import Code, JobError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs.capacity import report_crowding
from llmpod.worker.metrics.catalogue import CATALOGUE, CODES, OUTCOMES, ROUTES
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, replies_of
from tests.worker.scripted import ScriptedEngine

Json = dict[str, Any]
JOBS: tuple[tuple[str, Json | None], ...] = (
    ("ok", {"prompt": "Hello", "stream": True}),
    ("blocked", {"prompt": "What is the salary of a nurse?"}),
    ("rejected", {"prompt": "x" * 2000}),
    ("rejected", None),
    ("error", {"prompt": "fail"}),
    ("error", {"prompt": "bug"}),
    ("cancelled", {"prompt": "Hello slowly"}),
    ("timeout", {"prompt": "Hello slowly"}),
)


def samples(metrics: Metrics) -> list[Any]:
    """Every sample of the exposition, read by Prometheus' own parser."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return [sample for family in families for sample in family.samples]


def value(metrics: Metrics, metric: str, **labels: str) -> float:
    found = [s.value for s in samples(metrics) if s.name == metric and labels.items() <= s.labels.items()]
    return sum(found)


def scripted(events: Events, **settings: Any) -> Worker:
    settings = {"max_tokens_min": 1, "profile": "career"} | settings
    return Worker(Settings(**settings), ScriptedEngine(tokens_per_s=100_000), events.emit)  # type: ignore[arg-type]


async def run_job(worker: Worker, number: int, outcome: str, job_input: Json | None) -> None:
    job_id = f"job-{number}"
    if outcome not in ("cancelled", "timeout"):
        await replies_of(worker, job_input, job_id)
        return
    record = worker.record({"id": job_id})
    if outcome == "timeout":
        record.interruption = JobError(Code.TIMEOUT, "too long")
    worker.engine.hung = True  # type: ignore[attr-defined]
    replies = worker.handle({"id": job_id, "input": job_input}, record)
    task = asyncio.ensure_future(anext(replies))
    while not worker.engine.unfinished:
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    worker.engine.hung = False  # type: ignore[attr-defined]


async def test_the_sum_of_all_outcomes_is_the_number_of_end_lines(events: Events) -> None:
    worker = scripted(events)
    for number, (outcome, job_input) in enumerate(JOBS * 3):
        await run_job(worker, number, outcome, job_input)
    ends = events.named("end")
    assert Counter(end["outcome"] for end in ends) == Counter(outcome for outcome, _ in JOBS * 3)
    assert {end["outcome"] for end in ends} == set(OUTCOMES)  # no outcome is left out here
    assert value(worker.metrics, "llmpod_jobs_total") == len(ends)
    for outcome in OUTCOMES:
        counted = value(worker.metrics, "llmpod_jobs_total", outcome=outcome)
        assert counted == sum(end["outcome"] == outcome for end in ends), outcome
    for code in {end["error"] for end in ends if "error" in end}:
        assert value(worker.metrics, "llmpod_jobs_total", code=code) == sum(end.get("error") == code for end in ends)
    blocked = [end["policy"] for end in ends if end["outcome"] == "blocked"]
    assert (
        value(worker.metrics, "llmpod_blocked_total", policy=blocked[0]["name"], by=blocked[0]["by"])
        == len(blocked)
        == 3
    )
    assert value(worker.metrics, "llmpod_job_seconds_count") == sum(end["ok"] for end in ends)
    assert value(worker.metrics, "llmpod_slot_wait_seconds_count") == sum("wait_ms" in end for end in ends)
    generated = sum(end.get("tokens_generated", 0) for end in ends)
    assert value(worker.metrics, "llmpod_tokens_total", kind="generated") == generated > 0
    assert value(worker.metrics, "llmpod_metric_failures_total") == 0


async def test_metrics_that_fail_cost_no_job_its_result_and_are_counted(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = scripted(events)

    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left for numbers")

    for made in worker.metrics._made.values():
        for action in ("inc", "observe", "set", "labels"):
            if hasattr(made, action):
                monkeypatch.setattr(made, action, broken)
    worker.metrics.follow("llmpod_uptime_seconds", broken)  # type: ignore[arg-type]
    await replies_of(worker, {"prompt": "Hello"}, "job-1")
    assert events.end_of("job-1")["ok"] is True
    assert value(worker.metrics, "llmpod_metric_failures_total") > 0
    assert not [s for s in samples(worker.metrics) if s.name == "llmpod_uptime_seconds"]


async def test_an_event_of_any_form_is_logged_whatever_its_count_makes_of_it(events: Events) -> None:
    metrics = Metrics()
    metrics.tap(events.emit)("end", outcome=None, max_tokens=7)
    assert events.named("end")
    assert value(metrics, "llmpod_metric_failures_total") > 0


@given(
    st.text() | st.sampled_from(["/v1/responses/abc", "/v1/embeddings?x=1", "/v1/models/a/b"]),
    st.text() | st.sampled_from(CODES),
)
def test_no_route_and_no_code_makes_a_new_series(route: str, code: str) -> None:
    metrics = Metrics()
    metrics.tap(lambda event, **_: None)("end", route=route, outcome="error", error=code)
    (sample,) = [s for s in samples(metrics) if s.name == "llmpod_jobs_total"]
    assert sample.labels["route"] in ROUTES
    assert sample.labels["code"] in CODES
    assert sample.labels["route"] == OTHER or route.startswith(("/", "native"))


def start(emit: Emit) -> None:
    """The events of a start, with two GPUs."""
    gpus = [{"name": "H100", "memory_mib": 81_000, "free_mib": free} for free in (1000, 2000)]
    emit("environment", vllm="0.32.0", torch="2.13.0", commit=None, gpus=gpus)
    emit("warm_up", capabilities={"generate": {"ok": True}, "lora:a": {"ok": False}, "lora:b": {"ok": True}})
    memory = {"weights_mib": 14_000, "kv_cache_mib": 50_000, "processes_mib": 900, "gpus": gpus}
    emit("ready", model="m", start_ms={"import": 1500.0, "load": 2000.0}, memory=memory)


def test_a_start_says_what_runs_what_answered_and_what_holds_the_memory() -> None:
    metrics = Metrics()
    start(metrics.tap(lambda event, **_: None))
    found = metrics.snapshot()
    assert found["llmpod_info"] == {f"{__version__},none,0.32.0,2.13.0,H100,m": 1}
    assert found["llmpod_warm_up"] == {"generate": 1, "lora": 0}
    assert found["llmpod_start_seconds"] == {"import": 1.5, "load": 2}
    mib = {"weights": 14_000, "kv_cache": 50_000, "processes": 900, "free": 3000, "total": 162_000}
    assert found["llmpod_device_memory_bytes"] == {kind: size << 20 for kind, size in mib.items()}


def test_every_metric_of_the_exposition_is_in_the_catalogue_with_its_labels() -> None:
    metrics = Metrics()
    emit = metrics.tap(lambda event, **_: None)
    emit("end", outcome="ok", route="native", exec_ms=9.0, ttft_ms=5.0, wait_ms=1.0, max_tokens={"reason": "raised"})
    emit("end", outcome="blocked", policy={"name": "salary", "by": "certain"}, valid=True)
    start(emit)
    rows = {name: row for row in CATALOGUE for name in row.samples}
    found = samples(metrics)
    for sample in found:
        if sample.name.endswith("_created"):
            continue
        row = rows[sample.name]
        for label, given_value in sample.labels.items():
            known = row.labels.get(label, ())
            assert label == "le" or given_value in known or not known, sample
    assert {rows[s.name].name for s in found if s.name in rows} == {row.name for row in CATALOGUE}


async def test_a_snapshot_has_the_numbers_of_the_exposition(events: Events) -> None:
    worker = scripted(events)
    await replies_of(worker, {"prompt": "Hello"}, "job-1")
    snapshot = json.loads(json.dumps(worker.metrics.snapshot(), allow_nan=False))
    assert set(snapshot) == {row.name for row in CATALOGUE}
    assert snapshot["llmpod_jobs_total"] == {"native,ok,none": 1}
    assert snapshot["llmpod_job_seconds"]["native"]["count"] == 1
    assert snapshot["llmpod_slots"] == {"in_use": 0, "waiting": 0, "capacity": worker.slots.capacity}
    assert snapshot["llmpod_delivery_total"]["lost"] == 0  # there from the start, so that the first one is a rise


@pytest.mark.parametrize(("asked", "warned"), [(None, False), (160, False), (161, True)])
def test_capacity_far_below_max_concurrency_is_reported(events: Events, asked: int | None, warned: bool) -> None:
    capacity = scripted(events).slots.capacity
    assert capacity == 80  # 64 sequences and their headroom
    report_crowding(capacity, asked, events.emit)
    assert [(line["max_concurrency"], line["capacity"]) for line in events.named("concurrency")] == (
        [(161, 80)] if warned else []
    )
