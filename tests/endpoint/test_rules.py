"""The decisions of the endpoint as tables: scaling, limits, faults, waiting, chunks."""

from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.endpoint.api.rate_limit import RateWindow, parse_wait_ms, split_chunk
from llmpod.endpoint.environ import is_loopback
from llmpod.endpoint.errors import ApiError
from llmpod.endpoint.faults import DROP, Fault, Faults, batch_size, delay_s, draw
from llmpod.endpoint.state.autoscaler import backoff_s, queue_delay_target, request_count_target, surplus
from llmpod.protocol import Rate


@pytest.mark.parametrize(
    ("queued", "running", "value", "least", "most", "expected"),
    [
        (0, 0, 4, 0, 3, 0),
        (0, 0, 4, 1, 3, 1),
        (1, 0, 4, 0, 3, 1),
        (4, 0, 4, 0, 3, 1),
        (3, 2, 4, 0, 3, 2),
        (0, 9, 4, 0, 3, 3),
        (100, 0, 4, 0, 3, 3),
        (100, 0, 1, 0, 0, 0),
        (5, 0, 2.5, 0, 9, 2),
    ],
)
def test_request_count_is_jobs_by_scaler_value_rounded_up_within_bounds(queued, running, value, least, most, expected):
    assert request_count_target(queued, running, value, least, most) == expected


@pytest.mark.parametrize(
    ("waits", "live", "starting", "step", "least", "most", "expected", "why"),
    [
        ([], 0, 0, 1, 0, 3, 0, "nothing waits"),
        ([], 0, 0, 1, 2, 3, 2, "workersMin are always on"),
        ([], 2, 0, 1, 0, 3, 2, "idle workers leave by idleTimeout, not by this rule"),
        ([0.0], 0, 0, 1, 0, 3, 1, "no worker at all: the first job starts one at once"),
        ([0.0], 0, 0, 1, 0, 0, 0, "workersMax 0 starts none"),
        ([3.9], 1, 0, 1, 0, 3, 1, "nobody has waited long enough"),
        ([4.1], 1, 0, 1, 0, 3, 2, "one has"),
        ([9.0, 9.0, 9.0], 1, 0, 1, 0, 3, 2, "one step per look"),
        ([9.0, 9.0, 9.0], 1, 0, 2, 0, 9, 3, "two steps per look"),
        ([9.0], 1, 0, 5, 0, 9, 2, "not more than late jobs"),
        ([9.0, 1.0], 2, 1, 5, 0, 9, 2, "a worker is starting for the only late job"),
        ([9.0, 9.0], 2, 1, 5, 0, 9, 3, "one of two late jobs has a worker starting"),
        ([9.0] * 50, 3, 0, 1, 0, 3, 3, "workersMax"),
    ],
)
def test_queue_delay_adds_workers_while_a_job_waits_too_long(waits, live, starting, step, least, most, expected, why):
    assert queue_delay_target(waits, live, starting, 4, step, least, most) == expected, why


@pytest.mark.parametrize(("wait", "expected"), [(3.9, 0), (4.1, 1)])
def test_the_first_worker_can_be_made_to_wait_for_the_delay(wait, expected):
    assert queue_delay_target([wait], 0, 0, 4, 1, 0, 3, first_at_once=False) == expected


@given(
    waits=st.lists(st.floats(0, 100), max_size=20).map(lambda waits: sorted(waits, reverse=True)),
    live=st.integers(0, 10),
    least=st.integers(0, 5),
    extra=st.integers(0, 5),
    step=st.integers(1, 4),
)
def test_queue_delay_stays_within_bounds_and_one_step(waits, live, least, extra, step):
    most = least + extra
    target = queue_delay_target(waits, live, 0, 4, step, least, most)
    assert least <= target <= most
    assert target <= max(live + step, least, 1)


@pytest.mark.parametrize(
    ("idle", "live", "least", "most", "expected", "why"),
    [
        ([], 3, 0, 3, [], "nobody is idle"),
        ([4.9], 1, 0, 3, [], "not yet"),
        ([5.0], 1, 0, 3, [0], "idleTimeout"),
        ([9.0], 1, 1, 3, [], "workersMin stay"),
        ([6.0, 9.0], 2, 1, 3, [1], "the longest idle goes first"),
        ([0.0, 0.1], 4, 0, 3, [1], "more than workersMax: at once"),
    ],
)
def test_idle_workers_leave_after_idle_timeout(idle, live, least, most, expected, why):
    assert surplus(idle, live, least, most, 5.0) == expected, why


@pytest.mark.parametrize(("crashes", "expected"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (9, 60), (5000, 60)])
def test_a_crash_loop_backs_off_exponentially(crashes, expected):
    assert backoff_s(crashes, 60) == expected


@pytest.mark.parametrize(
    ("policy", "asked", "waiting", "expected"),
    [
        ("fill", 8, 3, {3}),
        ("fill", 2, 3, {2}),
        ("one", 8, 3, {1}),
        ("one", 8, 0, {0}),
        ("random", 3, 9, {1, 2, 3}),
        ("random", 9, 2, {1, 2}),
        ("random", 1, 9, {1}),
    ],
)
def test_take_policy_decides_the_size_of_a_batch(policy, asked, waiting, expected):
    random = Random(1)
    assert {batch_size(policy, asked, waiting, random) for _ in range(300)} == expected


def test_faults_meet_the_share_of_calls_they_are_set_to():
    faults = Faults(faults=[Fault.parse("job-done:503:0.1"), Fault.parse("*:drop:0.5")])
    random = Random(2)
    drawn = [draw(faults, "job-done", random) for _ in range(4000)]
    assert 0.08 < drawn.count(503) / 4000 < 0.12
    assert 0.42 < drawn.count(DROP) / 4000 < 0.48
    assert {draw(faults, "ping", random) for _ in range(100)} == {DROP, None}


@pytest.mark.parametrize(
    "text", ["", "job-done", "job-done:503", "job-done:200:0.1", "nowhere:503:0.1", "ping:503:2", "ping:boom:1"]
)
def test_a_misspelt_fault_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 -- any ValueError becomes the command line's one-line error
        Fault.parse(text)


@pytest.mark.parametrize(
    ("knobs", "operation", "size", "low_ms", "high_ms"),
    [
        ({}, "job-done", 1000, 0, 0),
        ({"post_latency_ms": 50}, "job-done", 0, 50, 50),
        ({"post_latency_ms": 50}, "job-take", 0, 0, 0),
        ({"post_latency_ms": 50, "post_jitter_ms": 20}, "job-stream", 0, 50, 70),
        ({"network_latency_ms": 5, "post_latency_ms": 50}, "job-stream", 0, 55, 55),
        ({"network_bytes_per_s": 1000}, "job-done", 500, 500, 500),
    ],
)
def test_latency_knobs_add_up(knobs, operation, size, low_ms, high_ms):
    delay_ms = 1000 * delay_s(Faults(**knobs), operation, size, Random(3))
    assert low_ms - 1e-6 <= delay_ms <= high_ms + 1e-6


def test_a_rate_window_admits_its_number_per_ten_seconds_and_then_again():
    window = RateWindow(Rate(3, None))
    assert [window.admit(now, 0, 0) for now in (0, 1, 2, 3, 9.9, 10.0, 10.5, 11.0)] == [True] * 3 + [False] * 2 + [
        True,
        False,
        True,
    ]


def test_a_rate_window_limits_what_is_open_and_grows_with_workers():
    window = RateWindow(Rate(100, 2))
    assert [window.admit(0, 0, 0) for _ in range(3)] == [True, True, False]
    window.leave()
    assert window.admit(0, 0, 0)
    assert not window.admit(0, 1, 2)
    assert window.admit(0, 2, 2)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, 77), ("1000", 1000), ("1", 1000), ("-5", 1000), ("90000", 90000), ("9999999", 300000)]
)
def test_wait_is_moved_into_runpod_s_range(text, expected):
    assert parse_wait_ms(text, 77) == expected


@given(text=st.text(max_size=400), limit=st.integers(8, 200))
def test_a_split_text_is_whole_again_and_each_piece_is_within_the_limit(text, limit):
    pieces = split_chunk(orjson.dumps(text), limit, "split")
    assert "".join(orjson.loads(piece) for piece in pieces) == text
    assert all(len(piece) <= limit for piece in pieces)


def test_other_large_chunks_are_refused():
    large = orjson.dumps({"x": "y" * 100})
    with pytest.raises(ApiError, match="above the limit"):
        split_chunk(large, 50, "split")
    with pytest.raises(ApiError, match="above the limit"):
        split_chunk(orjson.dumps("y" * 100), 50, "reject")
    assert split_chunk(large, 50, "accept") == [large]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(host, expected):
    assert is_loopback(host) is expected
