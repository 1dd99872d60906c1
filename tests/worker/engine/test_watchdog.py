"""When an engine counts as failed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from llmpod.worker.engine.watchdog import Watchdog
from llmpod.worker.errors import Code, JobError


@dataclass
class Looks:
    dead: bool = False
    unfinished: int = 0
    last_step: float = 0.0
    answers: bool = True
    asked: int = 0

    async def respond(self) -> None:
        self.asked += 1
        if not self.answers:
            await asyncio.Event().wait()


def code(failure: JobError | None) -> Code | None:
    return failure.code if failure else None


def test_an_idle_engine_may_be_silent_for_ever() -> None:
    watchdog = Watchdog(Looks(), 10, lambda failure: None)
    assert [watchdog.look(now) for now in (0, 100, 10_000)] == [None, None, None]


def test_silence_counts_from_the_first_request_not_from_the_last_token() -> None:
    engine = Looks()
    watchdog = Watchdog(engine, 10, lambda failure: None)
    assert watchdog.look(1000) is None
    engine.unfinished = 1
    assert watchdog.look(1001) is None
    assert watchdog.look(1010) is None
    assert code(watchdog.look(1012)) is Code.ENGINE_STALLED


def test_any_step_is_a_sign_of_life() -> None:
    engine = Looks(unfinished=3)
    watchdog = Watchdog(engine, 10, lambda failure: None)
    for now in range(0, 100, 9):
        engine.last_step = now
        assert watchdog.look(now + 5) is None
    assert code(watchdog.look(engine.last_step + 11)) is Code.ENGINE_STALLED


def test_zero_never_takes_silence_for_failure_but_death_counts() -> None:
    engine = Looks(unfinished=1)
    watchdog = Watchdog(engine, 0, lambda failure: None)
    assert watchdog.look(0) is None
    assert watchdog.look(1e9) is None
    engine.dead = True
    assert code(watchdog.look(1e9)) is Code.ENGINE_DEAD


async def clients_that_leave(engine: Looks, after_s: float) -> None:
    """One job at a time; each is given up, and between two of them the engine is idle."""
    while True:
        engine.unfinished = 1
        await asyncio.sleep(after_s)
        engine.unfinished = 0
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("leave_after_s", [None, 0.05, 0.3])
async def test_an_engine_that_hears_nothing_is_found_whatever_its_clients_do(leave_after_s: float | None) -> None:
    engine, seen = Looks(answers=False), list[JobError]()
    clients = asyncio.create_task(clients_that_leave(engine, leave_after_s)) if leave_after_s else None
    began = time.monotonic()
    async with asyncio.timeout(5):
        await Watchdog(engine, 0.6, seen.append).run()
    if clients is not None:
        clients.cancel()
    assert [code(failure) for failure in seen] == [Code.ENGINE_STALLED]
    assert time.monotonic() - began > 0.6


@pytest.mark.parametrize("clients", ["none", "leaving", "staying"])
async def test_an_engine_that_answers_is_left_alone(clients: str) -> None:
    """Also while nobody stays for the answer, and while a prefill takes its time between two answers."""
    engine, seen = Looks(last_step=time.monotonic() + 1), list[JobError]()
    leaving = asyncio.create_task(clients_that_leave(engine, 0.1)) if clients == "leaving" else None
    engine.unfinished = clients == "staying"
    watching = asyncio.create_task(Watchdog(engine, 0.4, seen.append).run())
    await asyncio.sleep(1.2)
    watching.cancel()
    if leaving is not None:
        leaving.cancel()
    assert seen == []
    assert engine.asked > 2


async def test_an_answer_may_take_as_long_as_a_step_may() -> None:
    engine, seen = Looks(answers=False), list[JobError]()
    watchdog = Watchdog(engine, 10, seen.append)
    watching = asyncio.create_task(watchdog.run())
    await asyncio.sleep(0)
    assert watchdog.look(time.monotonic() + 9) is None
    assert code(watchdog.look(time.monotonic() + 11)) is Code.ENGINE_STALLED
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_without_a_stall_time_nothing_is_asked() -> None:
    engine = Looks()
    watching = asyncio.create_task(Watchdog(engine, 0, lambda failure: None).run())
    await asyncio.sleep(0.3)
    watching.cancel()
    assert engine.asked == 0


async def test_a_failure_is_reported_once() -> None:
    seen: list[JobError] = []
    await Watchdog(Looks(dead=True), 10, seen.append).run()
    assert [failure.code for failure in seen] == [Code.ENGINE_DEAD]
