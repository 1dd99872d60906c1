"""How jobs and the worker end before their time: stops, deadlines, shutdown, a failed engine, failing calls."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from llmpod.endpoint import JobState
from tests.worker.scripted import (
    LoopClock,
    ScriptedEngine,
    Serving,
    error,
    output,
    serving,
    streamed_text,
    text_of,
    until,
)

pytestmark = pytest.mark.process

SLOW = {"max_tokens": 50_000}
AT_ONCE_S = 0.05


async def in_phase(served: Serving, phase: str) -> str:
    """A job that is certainly in this phase; its id."""
    engine: ScriptedEngine = served.engine
    if phase == "waiting for a slot":
        for _ in range(2):
            await served.submit(sampling_params=SLOW)
        await until(lambda: engine.unfinished == 2)
        job_id = await served.submit(sampling_params=SLOW)
        await until(lambda: served.worker.slots.waiting)
    elif phase == "prefill":
        engine.prefill_s = 60
        job_id = await served.submit(stream=True, sampling_params=SLOW)
        await until(lambda: engine.unfinished)
    elif phase == "decode":
        job_id = await served.submit(sampling_params=SLOW)
        await until(lambda: engine.unfinished)
    elif phase == "streaming":
        job_id = await served.submit(stream=True, sampling_params=SLOW)
        await until(lambda: served.endpoint.job(job_id).chunks)
    elif phase == "stream post":
        served.endpoint.set_faults(post_latency_ms=60_000)
        job_id = await served.submit(stream=True, sampling_params=SLOW)
        await until(lambda: engine.unfinished)
        await asyncio.sleep(0.1)
    else:
        served.endpoint.set_faults(post_latency_ms=60_000)
        job_id = await served.submit()
        await until(lambda: served.events.named("end"))
    return job_id


PHASES = ["waiting for a slot", "prefill", "decode", "streaming", "stream post", "job-done"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancelled_job_is_gone_at_once_in_every_phase(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    engine = ScriptedEngine(tokens_per_s=200, max_num_seqs=1)
    async with serving(monkeypatch, engine) as served, LoopClock() as clock:
        served.scaler.current_concurrency = 8
        job_id = await in_phase(served, phase)
        others = [other for other in served.scaler.jobs_tasks if other != job_id]
        asked = clock.now()
        await served.cancel(job_id)
        await until(lambda: job_id not in served.scaler.jobs_tasks)
        assert clock.now() - asked < AT_ONCE_S
        assert job_id not in engine.requests
        assert served.events.end_of(job_id)["outcome"] == ("ok" if phase == "job-done" else "cancelled")
        for other in others:
            await served.cancel(other)
        await until(served.at_rest)
        assert served.endpoint.job(job_id).state is JobState.CANCELLED


@pytest.mark.parametrize("phase", PHASES[:-1])
async def test_max_job_seconds_ends_a_job_in_every_phase(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    engine = ScriptedEngine(tokens_per_s=200, max_num_seqs=1)
    async with serving(monkeypatch, engine, max_job_seconds=0.6, max_queue_wait=60) as served, LoopClock() as clock:
        served.scaler.current_concurrency = 8
        job_id = await in_phase(served, phase)
        await until(lambda: served.events.of(job_id)[-1]["event"] == "end")
        served.endpoint.set_faults(post_latency_ms=0)
        failure = error(await served.ended(job_id))
        assert (failure["code"], failure["retryable"]) == ("timeout", True)
        assert served.events.end_of(job_id)["outcome"] == "timeout"
        assert served.events.end_of(job_id)["exec_ms"] < 600 + 1000 * (AT_ONCE_S + clock.lost_s)
        if phase == "streaming":
            chunks = [json.loads(chunk) for chunk in served.endpoint.job(job_id).chunks]
            assert chunks[-1]["failure"]["code"] == "timeout"
            said = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
            assert said
            assert text_of(1000).startswith(said)
            assert served.events.end_of(job_id)["tokens_generated"] >= said.count("w")
        await until(served.at_rest, 5)


async def test_the_platforms_timeout_ends_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"execution_timeout_ms": 500, "policy_bounds": False}
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=100), options=options) as served:
        job = await served.run(sampling_params=SLOW)
        assert job.state is JobState.TIMED_OUT
        await until(served.at_rest, 2)


async def test_shutdown_lets_running_jobs_finish_and_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=100)
    async with serving(monkeypatch, engine) as served:
        seconds = {"max_tokens": 200}
        ids = [await served.submit(stream=index % 2 == 0, sampling_params=seconds) for index in range(6)]
        await until(lambda: engine.unfinished == 6)
        served.scaler.kill_worker()
        late = await served.submit()
        await asyncio.wait_for(asyncio.shield(served.task), 10)
        assert [served.endpoint.job(job_id).state for job_id in ids] == [JobState.COMPLETED] * 6
        assert served.endpoint.job(late).state is JobState.IN_QUEUE
        assert not engine.running


async def test_what_outlasts_the_drain_fails_as_retryable(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=100)
    async with serving(monkeypatch, engine, drain_seconds=0.3) as served:
        ids = [await served.submit(stream=stream, sampling_params=SLOW) for stream in (False, True)]
        await until(lambda: engine.unfinished == 2)
        began = time.monotonic()
        await served.stop()
        assert 0.3 <= time.monotonic() - began < 2
        for job_id in ids:
            failure = error(served.endpoint.job(job_id))
            assert (failure["code"], failure["retryable"]) == ("worker_stopping", True)
            assert served.events.end_of(job_id)["outcome"] == "error"
        streamed = served.endpoint.job(ids[1])
        assert served.events.end_of(ids[1])["tokens_generated"] >= streamed_text(streamed).count("w") > 0


async def test_an_idle_worker_stops_without_waiting_for_its_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine(), options={"take_hold_s": 30, "stop_hold_s": 30}) as served:
        await served.run()
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await served.stop()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("seed", range(12))
async def test_a_job_that_arrives_during_shutdown_is_run_or_stays_queued(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    async with serving(monkeypatch, ScriptedEngine()) as served:
        served.endpoint.set_faults(network_latency_ms=chance.choice([0, 0, 3]), take_policy="random")
        submitting = [asyncio.create_task(served.submit(sampling_params={"max_tokens": 3})) for _ in range(8)]
        await asyncio.sleep(chance.uniform(0, 0.03))
        await served.stop()
        for submitted in submitting:
            job = served.endpoint.job(await submitted)
            assert job.state in (JobState.COMPLETED, JobState.IN_QUEUE)


async def test_a_dead_engine_stops_intake_fails_what_runs_and_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=100)
    async with serving(monkeypatch, engine, max_concurrency=4) as served:
        ids = [await served.submit(stream=index == 0, sampling_params=SLOW) for index in range(4)]
        await until(lambda: engine.unfinished == 4)
        queued = [await served.submit() for _ in range(50)]
        engine.die()
        await died(served, "engine_dead", ids)
        taken = [job_id for job_id in queued if served.endpoint.job(job_id).state is not JobState.IN_QUEUE]
        assert taken == [], "a worker without an engine ate the queue"


async def test_a_silent_engine_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=100)
    async with serving(monkeypatch, engine, engine_stall_seconds=0.5) as served:
        ids = [await served.submit(stream=index == 0, sampling_params=SLOW) for index in range(3)]
        await until(lambda: engine.unfinished == 3)
        await asyncio.sleep(0.7)
        assert served.scaler.failure is None, "it was busy, not silent"
        engine.hung = True
        await died(served, "engine_stalled", ids)


async def test_an_engine_that_dies_idle_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        await served.run()
        served.engine.die()
        await died(served, "engine_dead", [])


async def died(served: Serving, code: str, running: list[str]) -> None:
    await asyncio.wait_for(asyncio.shield(served.task), 10)
    assert served.task.result() == 1
    for job_id in running:
        failure = error(served.endpoint.job(job_id))
        assert (failure["code"], failure["retryable"]) == (code, True)
    assert served.events.all[-1]["event"] == "fatal"
    assert served.events.all[-1]["cause"].startswith("The engine")


# -- delivery, through the loop ----------------------------------------------------------------------------------------


def faults(*texts: str) -> list[dict[str, Any]]:
    parts = [text.split(":") for text in texts]
    return [{"operation": a, "outcome": int(b) if b.isdigit() else b, "probability": float(c)} for a, b, c in parts]


@pytest.mark.parametrize("outcome", ["503", "429", "500", "drop", "drop-after"])
async def test_no_result_is_lost_to_a_failing_call(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        served.endpoint.set_faults(faults=faults(f"job-done:{outcome}:0.4"), seed=7)
        ids = [await served.submit() for _ in range(10)]
        for job_id in ids:
            job = await served.ended(job_id)
            assert output(job)["choices"][0]["text"] == text_of(64)


@pytest.mark.parametrize("outcome", ["503", "429", "drop"])
async def test_no_text_is_lost_or_repeated_by_a_refused_chunk(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=300)) as served:
        served.endpoint.set_faults(faults=faults(f"job-stream:{outcome}:0.5"), seed=7)
        ids = [await served.submit(stream=True, sampling_params={"max_tokens": 200}) for _ in range(8)]
        for job_id in ids:
            assert streamed_text(await served.ended(job_id)) == text_of(200)


async def test_text_that_could_not_be_sent_travels_with_the_next_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpod.worker.queue.result_delivery.Delivery.chunk.__kwdefaults__", {"patience_s": 0.2})
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=300)) as served:
        served.endpoint.set_faults(faults=faults("job-stream:503:1"))
        job_id = await served.submit(stream=True, sampling_params={"max_tokens": 600})
        await asyncio.sleep(1)
        served.endpoint.set_faults(faults=[])
        assert streamed_text(await served.ended(job_id)) == text_of(600)


async def test_a_stream_whose_chunks_never_arrive_still_delivers_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpod.worker.queue.result_delivery.Delivery.chunk.__kwdefaults__", {"patience_s": 0.2})
    async with serving(monkeypatch, ScriptedEngine(), result_delivery_timeout=1) as served:
        served.endpoint.set_faults(faults=faults("job-stream:503:1"))
        job = await served.run(stream=True)
        assert output(job)[0]["choices"][0]["text"] == text_of(64)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_result_that_is_too_large_fails_by_that_name(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        failure = error(await served.run("size 11000000", stream=stream))
        assert failure["code"] == "result_too_large"
        assert failure["details"]["bytes"] > 11_000_000


async def test_a_large_stream_is_sent_in_parts_that_runpod_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine(), options={"chunk_overflow": "reject"}) as served:
        job = await served.run("size 3000000", stream=True)
        assert streamed_text(job) == "x" * 3_000_000
