"""A small, seeded share of `make bench-evidence`: sentences are seldom wrong, intervals hold, differences are found."""

import random
from typing import Any

import pytest

from bench import evidence
from llmpod.loadtest.analysis.analyse import analyse
from llmpod.loadtest.analysis.phase import PhaseReport, View
from llmpod.loadtest.analysis.timeline import Scaler
from llmpod.loadtest.cli.compare import compare
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase
from llmpod.loadtest.stats import share_is_clear, student, two_shares

pytestmark = pytest.mark.process

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
    lines = list(evidence.coverage(40, 1, (10, 100, 1000), queues=(("M/M/1", 0.7),), loops=((4, 1),)))
    assert [line.cells[:2] for line in lines if not line.met] == []
    printed = {line.cells[:2]: line.cells for line in lines}
    assert "(n/a)" in printed["M/M/1 0.7", "100"][4]  # a queue's p95 needs far more than 100 jobs
    for system, column in (("independent", 4), ("4 clients on 1", 3), ("4 clients on 1", 2)):
        assert printed[system, "1000"][column].endswith("of 40)")


def test_phases_are_compared_one_by_one_and_together() -> None:
    draw = random.Random("phases")
    a, b = evidence.recorded(draw, 0.5, 150, 3), evidence.recorded(draw, 0.65, 150, 3)
    found = [one for one in compare(a, b, [50.0]).differences if one.metric == "exec"]
    *phases, together = found
    assert sorted(one.phase for one in phases) == ["c=1", "c=2", "c=4"]
    assert together.phase == "all phases"
    assert together.n_a == sum(one.n_a for one in phases)
    assert together.low_ms is not None
    assert together.low_ms < 0.3 * together.a_ms < together.high_ms
    assert together.clear
    assert all(together.high_ms - together.low_ms < one.high_ms - one.low_ms for one in phases)
    assert together.detectable < min(one.detectable for one in phases)
    assert all(
        one.phase != "all phases" for one in compare(a, evidence.recorded(draw, 0.6, 150, 1), [50.0]).differences
    )


def test_the_tests_of_shares_and_means_are_those_of_the_tables() -> None:
    assert student(0.05, 7) == pytest.approx(2.365, abs=0.001)
    assert student(0.01, 7) == pytest.approx(3.499, abs=0.001)
    assert student(0.05, 10) == pytest.approx(2.228, abs=0.001)
    assert student(0.05, 1) == pytest.approx(12.706, abs=0.001)
    assert two_shares(3, 20, 12, 20) == pytest.approx(0.0079, abs=0.0001)
    assert two_shares(5, 10, 5, 10) == pytest.approx(1.0)
    assert not share_is_clear(0, 40, 0.01)
    assert share_is_clear(0, 400, 0.01)
    assert share_is_clear(20, 40, 0.01)


def report_on(jobs: list[Job], samples: list[dict[str, Any]] | None = None) -> PhaseReport:
    phase = Phase("c=2", "closed", "closed", concurrency=2)
    for index, job in enumerate(jobs):
        job.index, job.total_ms = index, (job.done_ms or 0.0) - (job.sent_ms or 0.0)
    return analyse(phase, jobs, jobs, samples or [], {}, View(scaler=Scaler(1.0, assumed=False)))


def done(sent_ms: float, done_ms: float, error_class: str | None = None) -> Job:
    job = Job("c=2", 0, "measured", "run", sent_ms=sent_ms, done_ms=done_ms, ok=error_class is None)
    job.error_class = error_class
    return job


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["dns"] * 5 + ["tls"] * 4, "9 of 49 jobs failed: most as dns."),
        (["dns"] * 5 + ["tls"] * 5, "10 of 50 jobs failed: 5 as dns, 5 as tls."),
        (["dns", "tls", "connect", "bad_reply", "job_failed"], "the others in 2 other ways."),
    ],
)
def test_most_is_more_than_half(classes: list[str], said: str) -> None:
    jobs = [done(at, at + 1.0) for at in range(40)] + [done(100, 101, one) for one in classes]
    assert said in report_on(jobs).why


def test_a_shortage_is_counted_from_this_clients_own_jobs_and_unknown_with_few_looks() -> None:
    # Two clients for 10 s, then one for 10 s, on one worker; /health is asked every 2 s and names a queue of others.
    jobs = [done(at * 1000.0, at * 1000.0 + 1000) for at in range(20)]
    jobs += [done(at * 1000.0, at * 1000.0 + 1000) for at in range(10)]
    counts = {"workers": {"running": 1, "idle": 0}, "jobs": {"inQueue": 9, "inProgress": 1}}
    samples = [{"t_ms": at * 2000.0, **counts} for at in range(11)]
    health = report_on(jobs, samples).health
    assert health is not None
    assert health.short_s == pytest.approx(10, abs=0.01)
    few = report_on(jobs, samples[:4]).health
    assert few is not None
    assert few.short_s is None
    blink = [{**one, "workers": {"running": 2 if at == 3 else 1, "idle": 0}} for at, one in enumerate(samples)]
    passed_over = report_on(jobs, blink).health
    assert passed_over is not None
    assert (passed_over.live_max, passed_over.short_s) == (1, pytest.approx(10, abs=0.01))
