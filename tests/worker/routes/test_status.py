"""The worker's own route /status: what it says, how fast, and that it asks nobody."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import pytest

from llmpod import __version__
from llmpod.worker.engine.start.report import Started
from llmpod.worker.machine import Gpu
from llmpod.worker.routes import status
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, error_of, replies_of
from tests.worker.scripted import ScriptedEngine, until

FIELDS = {
    *("state", "worker_id", "version", "model", "capabilities", "warm_up", "slots", "concurrency", "kv_cache_tokens"),
    *("gpus", "uptime_s", "start_ms", "commit", "revision"),
}


class Silent(ScriptedEngine):
    """An engine that may not be called, once it has started."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the status asked the engine for {name}")


async def worker(events: Events, engine: ScriptedEngine | None = None, **settings: Any) -> Worker:
    engine = engine or ScriptedEngine(max_num_seqs=128)
    return Worker(Settings(**settings), engine, events.emit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "job_input",
    [
        {"route": "/status"},
        {"route": "/status/"},
        {"route": "/status?verbose=1"},
        {"route": "/status", "method": "GET"},
        {"openai_route": "/status", "openai_input": {}},
    ],
)
async def test_the_route_answers_with_the_workers_state(
    events: Events, job_input: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_POD_ID", "pod-7")
    [reply] = await replies_of(await worker(events), job_input)
    assert reply.keys() == FIELDS
    assert (reply["state"], reply["worker_id"], reply["version"]) == ("ready", "pod-7", __version__)
    assert reply["slots"] == {"capacity": 160, "in_use": 0, "waiting": 0}
    assert reply["concurrency"] == 160
    assert reply["capabilities"] == {"generate": True}
    assert reply["warm_up"] == {"generate": {"ok": True, "ms": 1.0}}
    assert reply["start_ms"] == {"load": 2.0}
    assert reply["uptime_s"] >= 0
    end = events.end_of("job-1")
    assert (end["ok"], end["outcome"]) == (True, "ok")
    assert events.of("job-1")[0]["route"] == "/status"


async def test_another_method_is_refused_as_on_every_route(events: Events) -> None:
    error = await error_of(await worker(events), {"route": "/status", "method": "POST", "body": {}})
    assert (error["code"], error["field"]) == ("unsupported", "method")


async def test_under_128_running_jobs_it_takes_a_millisecond_and_no_slot(events: Events) -> None:
    busy = await worker(events, ScriptedEngine(max_num_seqs=128, tokens_per_s=1))

    async def run(number: int) -> None:
        async for _ in busy.handle({"id": f"long-{number}", "input": {"prompt": "hello", "stream": True}}):
            pass

    tasks = [asyncio.create_task(run(number)) for number in range(128)]
    await until(lambda: busy.engine.unfinished == 128)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        reply = busy.status()
        times.append(time.perf_counter() - began)
    assert reply["slots"] == {"capacity": 160, "in_use": 128, "waiting": 0}
    assert statistics.median(times) < 0.001
    [answered] = await replies_of(busy, {"route": "/status"})
    assert answered["slots"]["in_use"] == 128
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_it_calls_nothing_of_the_engine(events: Events) -> None:
    engine = Silent(max_num_seqs=4)
    quiet = await worker(events, engine)
    engine.hung = True
    [reply] = await replies_of(quiet, {"route": "/status"})
    assert reply["state"] == "ready"


@pytest.mark.parametrize(
    ("dead", "draining", "expected"),
    [(False, False, "ready"), (False, True, "draining"), (True, True, "failed"), (True, False, "failed")],
)
def test_the_state_is_the_worst_that_is_true(dead: bool, draining: bool, expected: str) -> None:
    assert status.state(dead=dead, draining=draining) == expected


async def test_a_worker_that_drains_or_has_failed_says_so(events: Events) -> None:
    engine = ScriptedEngine()
    made = Worker(Settings(), engine, events.emit)  # type: ignore[arg-type]
    assert made.status().keys() == FIELDS
    made.draining = True
    assert made.status()["state"] == "draining"
    engine.die()
    assert made.status()["state"] == "failed"


async def test_gpus_are_shown_with_what_they_used_when_the_start_ended(events: Events) -> None:
    made = await worker(events)
    gpus = (Gpu("card", 24564, 1000, "8.9"), Gpu("unknown", None, None, None))
    made.engine.started = Started(time.monotonic(), {}, {}, {}, gpus)
    assert made.status()["gpus"] == [
        {"name": "card", "total_mib": 24564, "used_mib": 23564},
        {"name": "unknown", "total_mib": None, "used_mib": None},
    ]
