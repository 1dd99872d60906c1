"""When an engine counts as failed."""

from __future__ import annotations

from dataclasses import dataclass

from llmpod.worker.errors import Code, JobError
from llmpod.worker.watchdog import Watchdog


@dataclass
class Looks:
    dead: bool = False
    unfinished: int = 0
    last_step: float = 0.0


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


async def test_a_failure_is_reported_once() -> None:
    seen: list[JobError] = []
    await Watchdog(Looks(dead=True), 10, seen.append).run()
    assert [failure.code for failure in seen] == [Code.ENGINE_DEAD]
