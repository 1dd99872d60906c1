"""Stops for jobs that are not here: obeyed while they are young, never twice, never after the job has been here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.queue.stops import FORGET_S, EarlyStops

pytestmark = pytest.mark.process

WHAT = st.sampled_from(["stop", "end", "begin"])
History = list[tuple[str, str, float]]
HISTORY = st.lists(st.tuples(WHAT, st.sampled_from("ab"), st.floats(0, FORGET_S)), max_size=30)


@given(HISTORY)
def test_a_job_is_stopped_exactly_when_a_young_stop_came_since_its_last_end(history: History) -> None:
    stops, now = EarlyStops(), 0.0
    stopped: dict[str, float] = {}
    ended: dict[str, float] = {}
    for what, job_id, pause in history:
        now += pause
        if what == "stop":
            stops.remember(job_id, now)
            if now - ended.get(job_id, -1e9) > FORGET_S:
                stopped[job_id] = now
        elif what == "end":
            stops.has_ended(job_id, now)
            ended[job_id] = now
        else:
            assert stops.obey(job_id, now) == (now - stopped.pop(job_id, -1e9) <= FORGET_S)


def test_what_is_old_is_not_kept() -> None:
    stops = EarlyStops()
    for number in range(1000):
        stops.remember(f"s{number}", float(number))
        stops.has_ended(f"e{number}", float(number))
    assert len(stops._stopped) <= FORGET_S + 1
    assert len(stops._ended) <= FORGET_S + 1
