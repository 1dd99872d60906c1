"""Queue, retention, ttl and retries with a clock that the tests move."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmpod.endpoint.state.job import TERMINAL, IllegalMoveError, JobRequest, JobState
from llmpod.endpoint.state.store import JobStore
from tests.endpoint.conftest import make_options


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def submit(store, *, sync=False, **fields):
    return store.submit(JobRequest(input=b"{}", **fields), sync=sync)


@pytest.mark.parametrize(("sync", "kept_s"), [(False, 1800), (True, 60)])
def test_a_finished_job_is_kept_for_its_retention_and_no_longer(clock, sync, kept_s):
    store = JobStore(make_options(), clock)
    job = submit(store, sync=sync)
    store.take(1, "w")
    store.finish(job, JobState.COMPLETED, "done")
    clock.now += kept_s - 1
    store.sweep_waiting()
    assert job.id in store.jobs
    clock.now += 2
    store.sweep_waiting()
    assert job.id not in store.jobs


def test_status_ttl_changes_the_retention_within_its_cap(clock):
    store = JobStore(make_options(retention_max_s=300), clock)
    job = submit(store, sync=True)
    store.take(1, "w")
    store.finish(job, JobState.COMPLETED, "done")
    store.keep_result(job, 9_000_000)
    clock.now += 299
    store.sweep_waiting()
    assert job.id in store.jobs
    clock.now += 2
    store.sweep_waiting()
    assert job.id not in store.jobs


def test_a_retried_job_is_not_forgotten_when_its_first_retention_ends(clock):
    store = JobStore(make_options(), clock)
    job = submit(store)
    store.take(1, "w")
    store.finish(job, JobState.FAILED, "done", error="x")
    assert store.retry(job)
    clock.now += 1801
    store.sweep_waiting()
    assert job.id in store.jobs


@pytest.mark.parametrize(("outcome", "kept"), [("DELETE", False), ("TIMED_OUT", True)])
def test_ttl_ends_a_queued_job(clock, outcome, kept):
    store = JobStore(make_options(ttl_outcome=outcome), clock)
    job = submit(store, ttl_ms=10_000)
    clock.now += 10.1
    store.sweep_waiting()
    assert job.state is JobState.TIMED_OUT
    assert not store.queue
    clock.now += 60
    store.sweep_waiting()
    assert (job.id in store.jobs) is kept


@pytest.mark.parametrize(("outcome", "stopped", "kept"), [("DELETE", 1, 0), ("TIMED_OUT", 1, 1), ("IGNORE", 0, 1)])
def test_ttl_ends_a_running_job(clock, outcome, stopped, kept):
    store = JobStore(make_options(ttl_running_outcome=outcome), clock)
    job = submit(store, ttl_ms=10_000)
    store.take(1, "w")
    clock.now += 10.1
    store.sweep_running()
    assert job.state is (JobState.TIMED_OUT if stopped else JobState.IN_PROGRESS)
    assert (job.id in store.jobs) is bool(kept)
    assert len(store.running) == 1 - stopped


def test_a_job_that_may_outlive_its_ttl_keeps_its_result_for_the_retention(clock):
    store = JobStore(make_options(ttl_running_outcome="IGNORE"), clock)
    job = submit(store, ttl_ms=10_000)
    store.take(1, "w")
    clock.now += 20
    store.finish(job, JobState.COMPLETED, "done")
    clock.now += 1799
    store.sweep_waiting()
    assert job.id in store.jobs


def test_the_ttl_of_a_finished_job_ends_its_retention(clock):
    store = JobStore(make_options(), clock)
    job = submit(store, ttl_ms=10_000)
    store.take(1, "w")
    store.finish(job, JobState.COMPLETED, "done")
    clock.now += 9
    store.sweep_waiting()
    assert job.id in store.jobs
    clock.now += 2
    store.sweep_waiting()
    assert job.id not in store.jobs


def test_a_job_whose_ttl_is_over_is_not_retried(clock):
    store = JobStore(make_options(ttl_outcome="TIMED_OUT"), clock)
    job = submit(store, ttl_ms=10_000)
    clock.now += 11
    store.sweep_waiting()
    assert not store.retry(job)
    assert job.state is JobState.TIMED_OUT


def test_asking_for_the_same_retention_again_costs_nothing(clock):
    store = JobStore(make_options(), clock)
    job = submit(store)
    store.take(1, "w")
    store.finish(job, JobState.COMPLETED, "done")
    for _ in range(100):
        store.keep_result(job, 60_000)
    assert len(store._expiries) <= 2


def test_execution_time_counts_from_the_hand_out_and_not_from_submission(clock):
    store = JobStore(make_options(), clock)
    job = submit(store, execution_timeout_ms=5000)
    clock.now += 100
    store.take(1, "w")
    clock.now += 4.9
    store.sweep_running()
    assert job.state is JobState.IN_PROGRESS
    clock.now += 0.2
    store.sweep_running()
    assert job.state is JobState.TIMED_OUT
    assert job.delay_ms == 100_000
    assert job.execution_ms == 5100


def test_the_docs_other_outcome_of_a_timeout_is_a_knob(clock):
    store = JobStore(make_options(timeout_outcome="FAILED"), clock)
    job = submit(store, execution_timeout_ms=1)
    store.take(1, "w")
    clock.now += 1
    store.sweep_running()
    assert job.state is JobState.FAILED


def test_low_priority_jobs_do_not_count_for_scaling(clock):
    store = JobStore(make_options(), clock)
    submit(store, low_priority=True)
    submit(store)
    clock.now += 3
    assert list(store.waits_s()) == [3]


def test_a_lost_job_goes_ahead_of_those_that_waited_behind_it(clock):
    store = JobStore(make_options(), clock)
    first, second = submit(store), submit(store)
    store.take(1, "w")
    store.lose(first, "gone")
    assert store.take(2, "v") == [first, second]


def test_a_job_that_ended_cannot_end_again(clock):
    store = JobStore(make_options(), clock)
    job = submit(store)
    store.finish(job, JobState.CANCELLED, "cancelled")
    for state in TERMINAL:
        with pytest.raises(IllegalMoveError):
            store.finish(job, state, "again")
    assert store.totals["CANCELLED"] == 1


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: counts agree, and each life of a job has one terminal state."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.store = JobStore(make_options(max_retries=1), self.clock)
        self.ends = {}
        self.lives = {}
        self.store.listeners.append(self.watch)

    def watch(self, job, was, reason):
        if was is None:
            self.lives[job.id] = 1
        if reason == "retry requested":
            self.lives[job.id] += 1
        if job.ended:
            self.ends[job.id] = self.ends.get(job.id, 0) + 1

    def some(self, data, jobs):
        return data.draw(st.sampled_from(list(jobs)))

    @rule(sync=st.booleans(), ttl=st.sampled_from([None, 10_000]))
    def submit(self, sync, ttl):
        submit(self.store, sync=sync, ttl_ms=ttl)

    @rule(count=st.integers(1, 3))
    def take(self, count):
        self.store.take(count, "w")

    @precondition(lambda self: self.store.running)
    @rule(data=st.data(), fate=st.sampled_from(["done", "error", "lose", "give back"]))
    def end(self, data, fate):
        job = self.some(data, self.store.running.values())
        if fate == "done":
            self.store.finish(job, JobState.COMPLETED, "done", output=b"1")
        elif fate == "error":
            self.store.finish(job, JobState.FAILED, "done", error="x")
        elif fate == "lose":
            self.store.lose(job, "gone")
        else:
            self.store.give_back(job, "poll closed")

    @precondition(lambda self: self.store.jobs)
    @rule(data=st.data(), retry=st.booleans())
    def cancel_or_retry(self, data, retry):
        job = self.some(data, self.store.jobs.values())
        if retry:
            self.store.retry(job)
        elif not job.ended:
            self.store.finish(job, JobState.CANCELLED, "cancelled")

    @rule(seconds=st.sampled_from([1, 11, 700, 2000]))
    def time_passes(self, seconds):
        self.clock.now += seconds
        self.store.sweep_running()
        self.store.sweep_waiting()

    @invariant()
    def books_agree(self):
        store = self.store
        for job in store.queue.values():
            assert job.state is JobState.IN_QUEUE
        for job in store.running.values():
            assert job.state is JobState.IN_PROGRESS
        open_jobs = [job for job in store.jobs.values() if not job.ended]
        assert len(open_jobs) == len(store.queue) + len(store.running)
        ended = sum(store.totals[state.value] for state in TERMINAL)
        assert ended == sum(self.ends.values())
        for job_id, lives in self.lives.items():
            job = store.jobs.get(job_id)
            still_open = job is not None and not job.ended
            assert self.ends.get(job_id, 0) == lives - still_open


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyOrder = AnyOrder.TestCase
