"""Two thousand jobs while workers are killed, connections break and clients cancel or leave.

Every job must end in exactly one terminal state, with its own answer; none may be lost and none answered twice.
Run alone, with the books printed at the end: `python -m pytest -s tests/endpoint/test_chaos.py`
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter, defaultdict

import pytest

from llmpod.endpoint import Fault
from llmpod.endpoint.state.job import TERMINAL
from tests.endpoint.conftest import serve

pytestmark = pytest.mark.process

JOBS = 2000
CLIENTS = 50
FAULTS = [
    "job-done:drop:0.02",
    "job-done:drop-after:0.02",
    "job-done:503:0.03",
    "job-take:drop:0.03",
    "job-stop:drop:0.05",
]


class Books:
    """What the endpoint says happened to each job, and what each client was told."""

    def __init__(self):
        self.ends = defaultdict(list)
        self.results = Counter()
        self.submitted = {}
        self.numbers = set()
        self.told = defaultdict(list)
        self.cancelled = set()

    def watch(self, job, was, reason):
        if was is None:
            self.submitted[job.id] = job
            self.numbers.add(json.loads(job.request.input)["echo"])
        if job.ended:
            self.ends[job.id].append(job.state.value)
        if reason == "done":
            self.results[job.id] += 1


async def one_job(client, books, number, dice):
    """One client's dealings with one job, of five kinds."""
    job_input = {"echo": number, "sleep_ms": dice.choice([0, 0, 20, 100, 300])}
    kind = dice.random()
    if kind < 0.04:
        # A client that leaves its call as soon as the endpoint has the job, which goes on without it.
        call = asyncio.create_task(client.post("/runsync", {"input": job_input | {"sleep_ms": 3000}}))
        while number not in books.numbers and not call.done():
            await asyncio.sleep(0.01)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        return
    if kind < 0.5:
        status, body = await client.post("/runsync?wait=120000", {"input": job_input})
        assert status == 200
        books.told[body["id"]].append((number, body))
        return
    job_id = await client.run(job_input)
    if kind < 0.6:
        await asyncio.sleep(dice.random() * 0.4)
        status, body = await client.post(f"/cancel/{job_id}")
        assert status == 200
        assert body["status"] in ("CANCELLED", "COMPLETED")
        books.cancelled.add(job_id)
    books.told[job_id].append((number, await client.end(job_id, wait=120_000)))
    books.told[job_id].append((number, (await client.get(f"/status/{job_id}"))[1]))


@pytest.mark.slow
async def test_in_chaos_every_job_ends_in_exactly_one_state_with_its_own_answer():
    books = Books()
    async with serve(
        workers_min=3, workers_max=3, max_retries=100, worker_variables={"CONCURRENCY": "32"}, worker_log_level="ERROR"
    ) as client:
        client.endpoint.listen(books.watch)
        client.endpoint.control.set_faults(
            {"take_policy": "random", "kill_every_s": 4, "seed": 7, "faults": [Fault.parse(text) for text in FAULTS]}
        )
        started = time.monotonic()
        numbers = iter(range(JOBS))

        async def keep_asking(seed):
            dice = random.Random(seed)
            for number in numbers:
                await one_job(client, books, number, dice)
                await asyncio.sleep(dice.random() * 0.4)

        await asyncio.gather(*(keep_asking(seed) for seed in range(CLIENTS)))
        store = client.endpoint.store
        async with asyncio.timeout(30):
            while store.queue or store.running:
                await asyncio.sleep(0.05)
        took_s = time.monotonic() - started
        kills = client.endpoint.fleet.starts - 3
        retried = store.totals["retried"]

    outcomes = Counter(ends[0] for ends in books.ends.values())
    print(f"{JOBS} jobs in {took_s:.1f} s, {kills} kills, {retried} retries, {dict(outcomes)}")
    assert kills >= 3, "workers were killed while it ran"
    assert retried > 20, "jobs were lost with their workers and with their connections"
    assert len(books.submitted) == JOBS, "no job is made up, none is missing"
    assert books.numbers == set(range(JOBS))
    for job_id, job in books.submitted.items():
        assert len(books.ends[job_id]) == 1, f"{job_id} ended as {books.ends[job_id]}"
        assert books.results[job_id] <= 1, f"{job_id} was answered twice"
        assert job.state in TERMINAL
        if job_id not in books.cancelled:
            assert books.ends[job_id] == ["COMPLETED"], f"{job_id} was lost"
    for job_id, answers in books.told.items():
        assert len({body["status"] for _, body in answers}) == 1, "two answers about one job differ"
        for number, body in answers:
            assert body["id"] == job_id
            assert body["status"] == books.ends[job_id][0]
            if body["status"] == "COMPLETED":
                assert body["output"]["echo"] == number
                assert body["output"]["id"] == job_id
    assert outcomes["CANCELLED"] > 20, "cancels met queued and running jobs"
