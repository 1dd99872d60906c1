"""The loop around the real engine: clients read what it said, and what ends early leaves nothing in it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llmpod.endpoint import JobState
from llmpod.worker.engine import Engine

from .scripted import LoopClock, error, output, serving, streamed_text, until

pytestmark = pytest.mark.slow

LONG = {"max_tokens": 2000, "ignore_eos": True}
NO_LIMIT = {"max_tokens_max": 0}


class Shared:
    """The session's engine, which a job loop may neither start nor end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize("latency_ms", [0, 40])
async def test_streams_join_to_what_the_engine_said(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, latency_ms: int
) -> None:
    prompt = "How do I prepare for a job interview?"
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:
        served.endpoint.set_faults(post_latency_ms=latency_ms)
        params = {"max_tokens": 200, "temperature": 0, "n": 1}
        whole = output(await served.run(prompt, sampling_params=params))["choices"][0]
        ids = [await served.submit(prompt, stream=True, sampling_params=params) for _ in range(8)]
        for job_id in ids:
            job = await served.ended(job_id)
            assert streamed_text(job) == whole["text"]
            assert output(job)[0]["choices"][0] == whole


async def test_merged_logprobs_are_one_row_per_token(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:
        served.endpoint.set_faults(post_latency_ms=50)
        params = {"max_tokens": 100, "logprobs": 2, "ignore_eos": True, "n": 2}
        job = await served.ended(await served.submit(stream=True, sampling_params=params), 60)
        assert job.state is JobState.COMPLETED, job.error
        for index in range(2):
            pieces = [c for chunk in job.chunks for c in json.loads(chunk)["choices"] if c["index"] == index]
            assert sum(len(piece.get("logprobs") or ()) for piece in pieces) == 100


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("latency_ms", [0, 60_000])
async def test_a_cancelled_job_leaves_no_request_in_the_engine(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, stream: bool, latency_ms: int
) -> None:
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served, LoopClock() as clock:
        served.endpoint.set_faults(post_latency_ms=latency_ms)
        ids = [await served.submit(stream=stream, sampling_params=LONG) for _ in range(4)]
        await until(lambda: engine.unfinished == 4)
        await asyncio.sleep(0.2)
        for left, job_id in reversed(list(enumerate(ids))):
            asked = clock.now()
            await served.cancel(job_id)
            await until(lambda left=left: engine.unfinished == left)
            assert clock.now() - asked < 0.05
        await until(served.at_rest)
        assert {served.events.end_of(job_id)["outcome"] for job_id in ids} == {"cancelled"}


async def test_a_timed_out_job_leaves_no_request_in_the_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    async with serving(monkeypatch, Shared(engine), max_job_seconds=0.3, **NO_LIMIT) as served:
        job = await served.run(stream=True, sampling_params=LONG)
        assert error(job)["code"] == "timeout"
        await until(served.at_rest, 1)


async def test_more_jobs_than_seats_all_complete(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:
        count = served.worker.concurrency + 40
        ids = [await served.submit(sampling_params={"max_tokens": 20, "n": 1 + i % 2}) for i in range(count)]
        states = [(await served.ended(job_id, 60)).state for job_id in ids]
        assert states == [JobState.COMPLETED] * count
