"""Hostile jobs by the thousand through the worker and a real engine: none takes the loop, the memory or another job.

`make test` runs a minute of it, `make fuzz` as long as one likes: FUZZ_SECONDS, FUZZ_SEED. A failure names the job, and
`python -m tests.worker.hostile SEED NUMBER` prints it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import time
from typing import Any

import psutil
import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.event_log import EventLog
from llmpod.worker.settings import DEMO_MODEL, Settings
from llmpod.worker.worker import Worker
from tests.worker.hostile import ROUTES, Hostile
from tests.worker.loop_watch import LoopWatch

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = os.environ.get("FUZZ_SEED", "1")
AT_ONCE = 8
MAX_BLOCKED_S = 0.25
MAX_GROWTH_BYTES = 300_000_000
JOB_S = 120.0
LEAKS = ("Traceback", "site-packages", " object at 0x", "/llmpod/")
INNOCENT = {"prompt": "How do I write a CV?", "sampling_params": {"temperature": 0, "max_tokens": 6}}


class Fuzz:
    """Runs hostile jobs in batches, an innocent one beside each, and collects what is wrong."""

    def __init__(self, engine: Engine, worker: Worker, log: EventLog, lines: io.StringIO) -> None:
        self.engine = engine
        self.worker = worker
        self.log = log
        self.lines = lines
        self.wrong: list[str] = []
        self.outcomes: dict[str, int] = {}
        fields = {route: known.fields or () for route in ROUTES if (known := engine.application.route("POST", route))}
        self.hostile = Hostile(SEED, fields, engine.sampling_names)

    def blame(self, number: object, what: str) -> None:
        self.wrong.append(f"job {number} of seed {SEED}: {what}")

    async def one(self, number: int) -> None:
        """A hostile job: read to its end, cancelled or left midway."""
        chance = random.Random(f"{SEED}/{number}/way")
        way, patience = chance.random(), chance.uniform(0, 0.3)
        replies = self.worker.handle({"id": f"job-{number}", "input": self.hostile.job(number)})
        last: Any = None
        try:
            async with asyncio.timeout(patience if way < 0.15 else JOB_S), contextlib.aclosing(replies):
                async for last in replies:
                    json.dumps(last, allow_nan=False)
                    if way > 0.95:
                        return
        except TimeoutError:
            if way >= 0.15:
                self.blame(number, f"not finished in {JOB_S:g} s")
            return
        except Exception as error:  # noqa: BLE001 - whatever a job raises is its failure
            self.blame(number, f"raised {error!r}")
            return
        self._judge(number, last)

    def _judge(self, number: int, last: Any) -> None:
        # /v1/models names the folder that the model was loaded from: here, one of the package's.
        if any(leak in str(last).replace(str(DEMO_MODEL), "") for leak in LEAKS):
            self.blame(number, f"tells a client about the inside: {str(last)[:1000]}")
        if not isinstance(last, dict) or not isinstance(last.get("error"), str):
            self.outcomes["answered"] = self.outcomes.get("answered", 0) + 1
            return
        error = json.loads(last["error"])
        self.outcomes[error["code"]] = self.outcomes.get(error["code"], 0) + 1
        if error["code"] in ("internal_error", "engine_dead", "engine_stalled"):
            self.blame(number, f"is a bug: {last}")
        elif error["retryable"]:
            self.blame(number, f"the client's fault is retryable: {str(last)[:1000]}")

    async def innocent(self, number: int, expected: str) -> None:
        await asyncio.sleep(random.Random(f"{SEED}/{number}/innocent").uniform(0, 0.1))
        replies = [reply async for reply in self.worker.handle({"id": f"innocent-{number}", "input": INNOCENT})]
        if [choice["text"] for choice in replies[-1].get("choices", [])] != [expected]:
            self.blame(number, f"an innocent job beside it got {replies}")

    async def batch(self, number: int, expected: str) -> None:
        jobs = [asyncio.create_task(self.one(number + offset)) for offset in range(AT_ONCE)]
        await asyncio.gather(*jobs, asyncio.create_task(self.innocent(number, expected)))
        until = time.monotonic() + 30
        while (held := self.held()) != (0, 0, 0) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if held != (0, 0, 0):
            self.blame(number, f"(or one of the next {AT_ONCE - 1}) left (requests, slots, waiting) = {held}")
        self._read_log(number)

    def held(self) -> tuple[int, int, int]:
        return self.engine.unfinished, self.worker.slots.in_use, self.worker.slots.waiting

    def _read_log(self, number: int) -> None:
        events = [json.loads(line) for line in self.lines.getvalue().splitlines()]
        self.lines.seek(0)
        self.lines.truncate()
        told: dict[str, list[str]] = {}
        for event in events:
            if event["event"] in ("start", "end"):
                told.setdefault(event["request_id"], []).append(event["event"])
            elif event["event"] in ("bug", "route_broken", "engine_error"):
                self.blame(event.get("request_id"), str(event)[:3000])
        for offset in range(AT_ONCE):
            if told.get(f"job-{number + offset}") != ["start", "end"]:
                self.blame(number + offset, f"logged {told.get(f'job-{number + offset}')}")
        if self.log.lost:
            self.blame(number, f"{self.log.lost} lines of the log were lost")


@pytest.mark.parametrize("max_prompt_chars", [1024, 0])
async def test_hostile_jobs_harm_nobody(engine: Engine, max_prompt_chars: int) -> None:
    lines = io.StringIO()
    log = EventLog(lines)
    settings = Settings(
        max_prompt_chars=max_prompt_chars, max_tokens_min=1, max_tokens_default=8, max_tokens_max=16, profile="career"
    )
    fuzz = Fuzz(engine, Worker(settings, engine, log.emit), log, lines)
    process = psutil.Process()
    [alone] = [reply async for reply in fuzz.worker.handle({"id": "alone", "input": INNOCENT})]
    expected = alone["choices"][0]["text"]
    began, number, before = time.monotonic(), 0 if max_prompt_chars else 1_000_000, process.memory_info().rss
    first = number
    while time.monotonic() - began < SECONDS / 2 and not fuzz.wrong:
        async with LoopWatch() as watch:
            await fuzz.batch(number, expected)
        if watch.worst_s > MAX_BLOCKED_S:
            fuzz.blame(number, f"(or one of the next {AT_ONCE - 1}) held the event loop for {watch.worst_s:.2f} s")
        number += AT_ONCE
    growth = process.memory_info().rss - before
    print(f"{number - first} jobs of seed {SEED}: {fuzz.outcomes}, {growth / 1e6:.0f} MB more")
    assert fuzz.wrong == []
    assert growth < MAX_GROWTH_BYTES
    assert number - first >= AT_ONCE
    assert len(fuzz.outcomes) > 2
