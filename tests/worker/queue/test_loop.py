"""The event-driven loop against a local endpoint: jobs are taken at once, cost little, and never too many."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import Any

import pytest
from runpod.serverless.modules.worker_state import JobsProgress

from llmpod.endpoint import Job, JobState
from llmpod.worker.queue.loop import EngineJobScaler
from llmpod.worker.queue.result_delivery import Delivery
from tests.worker.scripted import WORKER_ID, ScriptedEngine, error, output, serving, streamed_text, text_of, until

pytestmark = pytest.mark.process


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str, bytes]]:
    """Every POST the worker makes: when it was answered, the operation, the body."""
    seen: list[tuple[float, str, bytes]] = []
    post = Delivery._post

    async def noting(self: Delivery, url: Any, body: bytes, *rest: Any) -> int:
        attempts = await post(self, url, body, *rest)
        seen.append((time.monotonic(), str(url).split("/v2/local/")[1].split("/")[0], body))
        return attempts

    monkeypatch.setattr(Delivery, "_post", noting)
    return seen


async def test_a_plain_job_costs_one_call_and_its_output_is_an_object(monkeypatch: pytest.MonkeyPatch, posts) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        job = await served.run()
        assert job.state is JobState.COMPLETED
        assert output(job)["choices"] == [{"index": 0, "text": text_of(64), "finish_reason": "length"}]
        assert job.chunks == []
        await until(lambda: posts)  # noted when it has been answered, a moment after the job is complete
        assert [operation for _, operation, _ in posts] == ["job-done"]


@pytest.mark.parametrize("aggregate", [True, False])
async def test_a_stream_is_chunks_and_then_the_whole_once(
    monkeypatch: pytest.MonkeyPatch, posts, aggregate: bool
) -> None:
    async with serving(monkeypatch, ScriptedEngine(), return_aggregate_stream=aggregate) as served:
        job = await served.run(stream=True)
        assert streamed_text(job) == text_of(64)
        await until(lambda: posts[-1][1] == "job-done")  # as above
        assert [operation for _, operation, _ in posts] == ["job-stream"] * len(job.chunks) + ["job-done"]
        if aggregate:
            (whole,) = output(job)
            assert whole["choices"] == [{"index": 0, "text": text_of(64), "finish_reason": "length"}]
            assert whole["usage"]["output"] == 64
        else:
            assert output(job) == []


async def test_a_job_starts_the_moment_it_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        delays = []
        for _ in range(20):
            asked = time.monotonic()
            job_id = await served.submit(sampling_params={"max_tokens": 1})
            await until(lambda job_id=job_id: served.events.of(job_id))
            delays.append(time.monotonic() - asked)
            await served.ended(job_id)
        assert statistics.median(delays) < 0.04, "the stock loop needs 50 ms on average"


async def test_a_freed_slot_is_filled_at_once_and_never_more_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=1000)
    async with serving(monkeypatch, engine, max_concurrency=4) as served:
        most = 0

        def count(job: Job, was: JobState | None, reason: str) -> None:
            nonlocal most
            most = max(most, len(served.endpoint.worker(WORKER_ID).jobs))

        served.endpoint.listen(count)
        began = time.monotonic()
        ids = [await served.submit(sampling_params={"max_tokens": 50}) for _ in range(60)]
        for job_id in ids:
            assert (await served.ended(job_id)).state is JobState.COMPLETED
        assert most == 4
        assert time.monotonic() - began < 8, "the stock loop stops for a second whenever it is full: 15 times here"


@pytest.mark.parametrize("policy", ["one", "random"])
async def test_jobs_that_come_one_by_one_fill_the_engine(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    engine = ScriptedEngine(tokens_per_s=100, max_num_seqs=32)
    async with serving(monkeypatch, engine) as served:
        served.endpoint.set_faults(take_policy=policy)
        ids = [await served.submit() for _ in range(32)]
        await until(lambda: engine.unfinished == 32)
        for job_id in ids:
            await served.ended(job_id)


async def test_text_is_young_when_it_arrives_however_slow_a_post_is(monkeypatch: pytest.MonkeyPatch, posts) -> None:
    engine = ScriptedEngine(tokens_per_s=100)
    async with serving(monkeypatch, engine) as served:
        served.endpoint.set_faults(post_latency_ms=50)
        job_id = await served.submit(stream=True, sampling_params={"max_tokens": 200})
        await until(lambda: engine.unfinished)
        began = time.monotonic()
        job = await served.ended(job_id)
        assert streamed_text(job) == text_of(200)
        arrived = [at for at, operation, body in posts if operation == "job-stream" for _ in range(body.count(b"w"))]
        ages = [at - (began + number / 100) for number, at in enumerate(arrived)]
        assert len(ages) == 200
        assert statistics.median(ages) < 0.12, "one POST per token would make it seconds"


@pytest.mark.parametrize("latency_ms", [0, 7, 150])
async def test_order_and_text_hold_under_any_latency(monkeypatch: pytest.MonkeyPatch, latency_ms: int) -> None:
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=500)) as served:
        served.endpoint.set_faults(post_latency_ms=latency_ms, post_jitter_ms=latency_ms)
        ids = [await served.submit(stream=True, sampling_params={"max_tokens": 300}) for _ in range(10)]
        for job_id in ids:
            assert streamed_text(await served.ended(job_id)) == text_of(300)


async def test_min_stream_gap_bounds_the_number_of_calls(monkeypatch: pytest.MonkeyPatch, posts) -> None:
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=200), min_stream_gap_ms=200) as served:
        job = await served.run(stream=True, sampling_params={"max_tokens": 200})
        assert streamed_text(job) == text_of(200)
        assert len(posts) <= 8
        gaps = [after[0] - before[0] for before, after in itertools.pairwise(posts[:-2])]
        assert min(gaps) > 0.15


async def test_a_job_beyond_the_engine_waits_and_then_fails_as_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=100, max_num_seqs=1)  # and one more as head-room
    async with serving(monkeypatch, engine, max_concurrency=3, max_queue_wait=0.1) as served:
        ids = [await served.submit() for _ in range(3)]
        failure = error(await served.ended(ids[2]))
        assert (failure["code"], failure["retryable"]) == ("overloaded", True)
        assert [(await served.ended(job_id)).state for job_id in ids[:2]] == [JobState.COMPLETED] * 2
        assert engine.most_requests == 2


async def test_a_failure_is_json_and_a_stream_says_it_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        for prompt, code in (("fail", "generation_failed"), ("bug", "internal_error")):
            assert error(await served.run(prompt))["code"] == code
            job = await served.run(prompt, stream=True)
            assert error(job)["code"] == code
            assert f'"{code}"'.encode() in job.chunks[-1]
        assert error(await served.run("hello", unknown_field=1))["code"] == "unknown_field"


async def test_the_heartbeat_knows_the_running_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=100)) as served:
        job_id = await served.submit()
        await until(lambda: served.engine.unfinished)
        assert JobsProgress().get_job_list() == job_id
        await served.ended(job_id)
        await until(lambda: JobsProgress().get_job_list() is None)


async def test_refresh_worker_asks_for_a_fresh_pod_and_ends_this_one(monkeypatch: pytest.MonkeyPatch, posts) -> None:
    async with serving(monkeypatch, ScriptedEngine(), config={"refresh_worker": True}) as served:
        await served.run()
        await asyncio.wait_for(served.task, 10)
        await until(lambda: posts[-1][1] == "job-done")
        assert b'"stopPod":true' in posts[-1][2]


async def test_a_job_handed_out_twice_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=100)) as served:
        job_id = await served.submit()
        await until(lambda: served.engine.unfinished)
        served.scaler._begin({"id": job_id, "input": {"prompt": "hello"}})
        assert served.events.named("job_repeated")
        assert (await served.ended(job_id)).state is JobState.COMPLETED


async def test_what_is_not_a_job_does_not_stop_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        for junk in (None, 7, {}, {"id": None, "input": {}}, {"id": 5}, {"id": "\ud800", "input": {}}):
            served.scaler._begin(junk)
        assert len(served.events.named("take_failed")) == 6
        assert (await served.run()).state is JobState.COMPLETED


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_that_overtakes_its_job_is_obeyed_and_the_job_reported(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        held = served.scaler._begin
        monkeypatch.setattr(served.scaler._poller, "begin", lambda job: (served.scaler._stop(job["id"]), held(job)))
        failure = error(job := await served.run(stream=stream))
        assert (failure["code"], failure["retryable"]) == ("cancelled", True)
        assert job.chunks == []
        assert [event["event"] for event in served.events.of(job.id)] == ["start", "end"]
        assert served.events.end_of(job.id)["outcome"] == "cancelled"
        assert served.engine.most_requests == 0


async def test_a_stop_that_crosses_a_jobs_end_does_not_swallow_its_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        job = await served.run("fail")
        served.scaler._stop(job.id)
        async with served.session.post(f"{served.endpoint.url}/retry/{job.id}") as response:
            assert response.status == 200
        assert error(await served.ended(job.id))["code"] == "generation_failed"
        await until(lambda: len(served.events.of(job.id)) == 4)


async def test_polls_that_are_refused_are_repeated_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine()) as served:
        calls = 0
        take = served.scaler._poller.fetch

        async def counting(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return await take(*arguments)

        served.scaler._poller.fetch = counting
        served.endpoint.set_faults(faults=[{"operation": "job-take", "outcome": 503, "probability": 1}])
        job_id = await served.submit()
        await asyncio.sleep(1)
        assert 1 < calls < 12, "the stock loop asks thousands of times a second"
        served.endpoint.set_faults(faults=[])
        assert (await served.ended(job_id)).state is JobState.COMPLETED


async def test_the_stock_loop_still_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, ScriptedEngine(), base=EngineJobScaler) as served:
        job = await served.run(stream=True)
        assert streamed_text(job) == text_of(64)


async def test_many_streams_take_turns_and_none_waits_when_it_has_ended(monkeypatch: pytest.MonkeyPatch, posts) -> None:
    streams, tokens = 40, 100
    async with serving(monkeypatch, ScriptedEngine(tokens_per_s=200), options={"rate_limits": False}) as served:
        params = {"max_tokens": tokens}
        ids = [await served.submit(stream=True, sampling_params=params) for _ in range(streams)]
        for job_id in ids:
            assert streamed_text(await served.ended(job_id)) == text_of(tokens)
        chunks = sum(operation == "job-stream" for _, operation, _ in posts)
        assert chunks < streams * tokens / 2, "a chunk per token is what a stream of its own would send"
        pace = served.scaler._pace
        assert pace.gap_s == 0, "streams that have ended take no turns"
