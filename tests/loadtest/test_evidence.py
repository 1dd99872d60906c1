"""A small, seeded share of `make bench-evidence`: sentences are seldom wrong, intervals hold, differences are found."""

import random

import pytest

from bench import evidence
from llmpod.loadtest.stats import share_is_clear, student_8, two_shares

RUNS = 8
FIND = {"worker shortage", "nothing was answered", "the queue grows"}


@pytest.mark.parametrize(
    ("name", "world", "true", "said"),
    [pytest.param(*one, id=f"{one[0]}: {one[1]}") for one in evidence.SENTENCES if "200 jobs" not in one[1]],
)
def test_a_sentence_is_said_when_it_is_true_and_else_hardly_ever(
    name: str, world: str, true: bool, said: evidence.Said
) -> None:
    draw = random.Random(f"test {name} {world}")
    times = sum(said(draw) for _ in range(RUNS))
    if not true:
        assert evidence.within(times, RUNS, evidence.WORST)
    elif name in FIND:
        assert times == RUNS


def test_intervals_hold_on_independent_samples_and_in_queues() -> None:
    lines = list(evidence.coverage(40, 1, (10, 100, 1000), queues=(("M/M/1", 0.7),)))
    assert [line.cells[:2] for line in lines if not line.met] == []
    printed = {line.cells[:2]: line.cells for line in lines}
    assert "(n/a)" in printed["M/M/1 0.7", "100"][4]  # a queue's p95 needs far more than 100 jobs
    assert printed["independent", "100"][4].endswith("of 40)") or "of 3" in printed["independent", "100"][4]


def test_the_tests_of_shares_and_means_are_those_of_the_tables() -> None:
    assert student_8(0.05) == pytest.approx(2.365, abs=0.001)
    assert student_8(0.01) == pytest.approx(3.499, abs=0.001)
    assert two_shares(3, 20, 12, 20) == pytest.approx(0.0079, abs=0.0001)
    assert two_shares(5, 10, 5, 10) == pytest.approx(1.0)
    assert not share_is_clear(0, 40, 0.01)
    assert share_is_clear(0, 400, 0.01)
    assert share_is_clear(20, 40, 0.01)
