"""One real engine for the whole session: vLLM on the CPU with the demonstration model."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from llmpod.worker.engine import first_error
from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.start.engine_start import EngineStart
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.processes import one_core

Json = dict[str, Any]

# As when an engine starts: vLLM's models, which some test may import before one does, are made as they are in a worker.
_first_error_only = first_error.only()  # kept: what is collected is undone
_first_error_only.__enter__()


class Events:
    """Collects what a worker logs."""

    def __init__(self) -> None:
        self.all: list[Json] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.all.append({"event": event} | {name: value for name, value in fields.items() if value is not None})

    def of(self, job_id: str) -> list[Json]:
        return [event for event in self.all if event.get("request_id") == job_id]

    def named(self, name: str) -> list[Json]:
        return [event for event in self.all if event["event"] == name]

    def end_of(self, job_id: str) -> Json:
        """The job's end line, after checking that it has exactly one start and one end, in this order."""
        lines = [event for event in self.of(job_id) if event["event"] in ("start", "end")]
        assert [line["event"] for line in lines] == ["start", "end"], lines
        return lines[1]


@pytest.fixture(scope="session")
async def engine() -> AsyncIterator[Engine]:
    events = Events()
    with one_core():
        engine = await EngineStart(Settings(), {}, events.emit).run()
    assert events.named("ready")
    yield engine
    assert engine.unfinished == 0, "a test left a request in the engine"
    engine.shutdown()


@pytest.fixture(autouse=True)
def same_environment_after() -> Iterator[None]:
    """vLLM sets variables when it reads its arguments; the next engine to start must not take them for a person's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def make_worker(engine: Engine, events: Events) -> Callable[..., Worker]:
    """A worker on the session's engine, with settings of its own."""

    def make(**settings: Any) -> Worker:
        return Worker(Settings(**settings), engine, events.emit)

    return make


async def replies_of(worker: Worker, job_input: object, job_id: str = "job-1") -> list[Json]:
    """All replies of one job, each of them JSON as RunPod would carry it."""
    replies = [reply async for reply in worker.handle({"id": job_id, "input": job_input})]
    assert json.loads(json.dumps(replies, allow_nan=False)) == replies
    return replies


async def error_of(worker: Worker, job_input: object, job_id: str = "job-1") -> Json:
    """The error of a job that must fail: the last reply's JSON string, as an object."""
    replies = await replies_of(worker, job_input, job_id)
    assert list(replies[-1]) == ["error"], replies[-1]
    assert isinstance(replies[-1]["error"], str)
    error: Json = json.loads(replies[-1]["error"])
    assert "Traceback" not in replies[-1]["error"]
    assert error["job_id"] == job_id
    return error


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of ours is set; those of the machine stay."""
    for name in list(os.environ):
        if name.startswith(("MAX_", "MODEL_", "RUNPOD_", "VLLM_")):
            monkeypatch.delenv(name)
    return monkeypatch
