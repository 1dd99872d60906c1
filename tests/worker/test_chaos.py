"""Everything at once, for a minute (`make chaos`: for as long as CHAOS_SECONDS says): mixed jobs, a network that fails,
workers that are killed. Each job ends once and as it should, no result is lost, and nothing piles up."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from llmpod.endpoint import Job, JobState, LocalEndpoint, Options
from llmpod.worker.jobs.slots import Slot
from llmpod.worker.queue.job_run import JobRun
from llmpod.worker.queue.stream_chunks import Deltas
from tests.worker.scripted import ENDED, ScriptedEngine, serving, streamed_text, text_of, until

pytestmark = [pytest.mark.slow, pytest.mark.process]

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
NETWORK: dict[str, Any] = {
    "post_latency_ms": 5,
    "post_jitter_ms": 30,
    "take_policy": "random",
    "faults": [
        {"operation": "job-done", "outcome": 503, "probability": 0.1},
        {"operation": "job-done", "outcome": "drop", "probability": 0.05},
        {"operation": "job-done", "outcome": "drop-after", "probability": 0.05},
        {"operation": "job-done", "outcome": 429, "probability": 0.05},
        {"operation": "job-stream", "outcome": 503, "probability": 0.05},
        {"operation": "job-stream", "outcome": "drop", "probability": 0.03},
        {"operation": "job-take", "outcome": 502, "probability": 0.1},
        {"operation": "job-take", "outcome": "drop", "probability": 0.1},
        {"operation": "job-stop", "outcome": "drop", "probability": 0.1},
    ],
}
KINDS: dict[str, float] = {"plain": 8, "streamed": 8, "cancelled": 4, "failing": 2, "invalid": 1, "oversized": 0.1}


class Storm:
    """Sends jobs of every kind to an endpoint, and knows how each of them must end."""

    def __init__(self, endpoint: LocalEndpoint, seed: int, shares: dict[str, float] = KINDS) -> None:
        self.endpoint = endpoint
        self.chance = random.Random(seed)
        self.shares = shares
        self.kinds: dict[str, tuple[str, int]] = {}
        self.endings: Counter[str] = Counter()
        self.kills = 0
        endpoint.listen(self._note)

    def _note(self, job: Job, was: JobState | None, reason: str) -> None:
        if job.state in ENDED:
            self.endings[job.id] += 1

    async def blow(self, seconds: float, jobs_per_s: float) -> None:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as cancels:
            loop = asyncio.get_running_loop()
            end, first = loop.time() + seconds, [*self.shares]  # each kind at least once
            while loop.time() < end:
                kind = first.pop() if first else self.chance.choices([*self.shares], [*self.shares.values()])[0]
                tokens = self.chance.randint(1, 60)
                job_input: dict[str, Any] = {"prompt": "hello", "sampling_params": {"max_tokens": tokens}}
                job_input |= {"stream": kind == "streamed" or (kind in ("cancelled", "failing") and tokens % 2 == 0)}
                if kind == "oversized":
                    job_input["prompt"] = "size 10500000"
                elif kind == "failing":
                    job_input["prompt"] = "fail"
                elif kind == "invalid":
                    job_input["no_such_field"] = 1
                elif kind == "cancelled":
                    job_input["sampling_params"]["max_tokens"] = 50_000
                async with session.post(self.endpoint.url + "/run", json={"input": job_input}) as response:
                    job_id = (await response.json())["id"]
                self.kinds[job_id] = (kind, tokens)
                if kind == "cancelled":
                    cancels.create_task(self._cancel(session, job_id))
                await asyncio.sleep(self.chance.expovariate(jobs_per_s))

    async def _cancel(self, session: aiohttp.ClientSession, job_id: str) -> None:
        await asyncio.sleep(self.chance.uniform(0, 1.0))
        async with session.post(f"{self.endpoint.url}/cancel/{job_id}"):
            pass

    async def settle(self) -> None:
        """Wait until every job has ended, and check how."""
        await until(lambda: all(self.endpoint.job(job_id).state in ENDED for job_id in self.kinds), 60)
        assert set(self.endings.values()) == {1}, "a job ended twice"
        assert set(self.endings) == set(self.kinds)
        for job_id, (kind, tokens) in self.kinds.items():
            self._check(self.endpoint.job(job_id), kind, tokens)

    def _check(self, job: Job, kind: str, tokens: int) -> None:
        if kind == "cancelled":
            assert job.state is JobState.CANCELLED, (job.state, job.error)
        elif kind in ("plain", "streamed"):
            assert job.state is JobState.COMPLETED, (kind, job.state, job.error)
            assert job.output is not None
            whole = json.loads(job.output)
            (whole,) = whole if kind == "streamed" else (whole,)
            assert whole["choices"][0]["text"] == text_of(tokens)
            if kind == "streamed" and not job.retries:
                assert streamed_text(job) == text_of(tokens)
        else:
            code = {"failing": "generation_failed", "invalid": "unknown_field", "oversized": "result_too_large"}[kind]
            assert job.state is JobState.FAILED, (kind, job.state)
            assert json.loads(str(job.error))["code"] == code


def living(*kinds: type) -> Counter[str]:
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)


@pytest.mark.timeout(SECONDS + 120)
async def test_nothing_piles_up_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(tokens_per_s=100, max_num_seqs=16)
    before = living(JobRun, Deltas, Slot)
    async with serving(monkeypatch, engine, max_concurrency=30, options={"rate_limits": False}) as served:
        served.endpoint.set_faults(**NETWORK, seed=1)
        storm = Storm(served.endpoint, 1)
        await storm.blow(SECONDS / 3, 40)
        await storm.settle()
        await until(served.at_rest, 10)
        assert living(JobRun, Deltas, Slot) == before, "ended jobs are still in memory"
        tasks = [task for task in asyncio.all_tasks() if "worker" in str(task.get_coro())]
        assert len(tasks) < 20, tasks
        assert engine.most_requests > 8
        assert not served.events.named("result_lost")
        assert not served.events.named("bug")


def with_workers(count: int) -> Options:
    """An endpoint whose worker processes have the scripted engine."""
    return Options(
        port=0,
        command=[sys.executable, "-u", "-m", "tests.worker.scripted_process"],
        cwd=REPOSITORY,
        env=dict(os.environ) | {"PYTHONPATH": str(REPOSITORY / "src"), "MAX_TOKENS_MIN": "1", "MAX_TOKENS_MAX": "0"},
        workers_min=count,
        workers_max=count,
        ping_interval_ms=1000,
        max_retries=100,
        rate_limits=False,
        crash_backoff_max_s=0,
        journal="",
        console=False,
    )


@pytest.mark.timeout(SECONDS + 120)
async def test_a_worker_s_memory_stays_flat() -> None:
    async with LocalEndpoint(with_workers(1)) as endpoint:
        (worker_id,) = await endpoint.ready()
        pid = endpoint.fleet.processes[worker_id].pid
        assert pid is not None
        endpoint.set_faults(**NETWORK, seed=3)
        sizes = []
        # The first storms are what a process needs to warm up: after huge answers, of which each has one, the allocator
        # keeps room for one or two.
        for seed in (3, 3, 4, 5, 6):
            storm = Storm(endpoint, seed, KINDS | {"oversized": 0})
            await storm.blow(SECONDS / 12, 60)
            await storm.settle()
            sizes.append(psutil.Process(pid).memory_info().rss)
        assert sizes[4] - sizes[2] < 3_000_000, sizes


@pytest.mark.timeout(SECONDS + 120)
async def test_no_job_is_lost_when_workers_are_killed() -> None:
    async with LocalEndpoint(with_workers(2)) as endpoint:
        await endpoint.ready()
        endpoint.set_faults(**NETWORK, seed=2)
        storm = Storm(endpoint, 2)
        killing = asyncio.create_task(kill(endpoint, storm))
        await storm.blow(SECONDS * 2 / 3 - 10, 15)
        killing.cancel()
        await storm.settle()
        assert storm.kills >= 1


async def kill(endpoint: LocalEndpoint, storm: Storm) -> None:
    """SIGKILL to a worker that holds jobs, as often as there is another one to go on."""
    while True:
        await asyncio.sleep(3)
        up = await endpoint.ready(workers=2, timeout_s=600)
        if endpoint.kill_worker(max(up, key=lambda worker_id: len(endpoint.worker(worker_id).jobs))):
            storm.kills += 1
