"""The parts that decide: events, percentiles, buckets, schedules, correction. No network."""

import json
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.loadtest.dependence import correlation_time, looks_independent, upper_bound
from llmpod.loadtest.model.arrivals import Arrivals, Segment, stages, steady
from llmpod.loadtest.run.polling import PollPace, correct_total
from llmpod.loadtest.run.rate_limit import RUNPOD_LIMITS, TokenBucket
from llmpod.loadtest.run.sse import SseParser
from llmpod.loadtest.stats import (
    difference_interval,
    jain,
    nearest_rank,
    needed_n,
    pooled,
    quantile,
    quantile_ranks,
    quantiles,
)
from llmpod.loadtest.units import parse_duration_s, show_duration, show_ms
from llmpod.protocol import RATE_WINDOW_S

# -- server-sent events --

STREAM = (
    b"\xef\xbb\xbf: keep-alive\r\n\r\ndata: {\"a\": \"z\xc3\xbcrich \xf0\x9f\x9a\x80\"}\r\n\r\n"
    b"event: x\ndata: one\ndata: two\n\nid: 7\rdata:three\r\r:\n\ndata: [DONE]\n\n"
)  # fmt: skip
EVENTS = ['{"a": "zürich 🚀"}', "one\ntwo", "three", "[DONE]"]


def parse_pieces(pieces: list[bytes]) -> list[str]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_events_are_the_same_wherever_the_bytes_are_split_in_two() -> None:
    for at in range(len(STREAM) + 1):
        assert parse_pieces([STREAM[:at], STREAM[at:]]) == EVENTS, at


def test_events_are_the_same_byte_by_byte() -> None:
    assert parse_pieces([STREAM[at : at + 1] for at in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_for_any_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parse_pieces([STREAM[a:b] for a, b in pairwise(edges)]) == EVENTS


def test_an_event_without_its_blank_line_is_pending_and_not_delivered() -> None:
    parser = SseParser()
    assert list(parser.feed(b"data: half")) == []
    assert parser.pending
    assert list(parser.feed(b"\n\n")) == ["half"]
    assert not parser.pending


# -- percentiles and intervals --


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.1, 99.9))
def test_nearest_rank_is_the_smallest_value_that_enough_of_the_sample_do_not_exceed(
    values: list[float], p: float
) -> None:
    values.sort()
    found = nearest_rank(values, p)
    assert found in values
    share = sum(1 for value in values if value <= found) / len(values)
    assert share >= p / 100 - 1e-9
    below = [value for value in values if value < found]
    assert len(below) / len(values) < p / 100


def test_nearest_rank_survives_binary_fractions() -> None:
    assert nearest_rank(list(range(1, 101)), 7) == 7
    assert [nearest_rank(list(range(1, 1001)), p) for p in (50, 90, 95, 99, 99.9)] == [500, 900, 950, 990, 999]


def test_the_samples_needed_for_an_interval_are_those_of_the_tables() -> None:
    assert [needed_n(p) for p in (50, 90, 95, 99)] == [6, 29, 59, 299]


@pytest.mark.parametrize("p", [50, 90, 95, 99])
def test_there_is_an_interval_exactly_from_the_needed_n_on(p: float) -> None:
    least = needed_n(p)
    assert quantile_ranks(least - 1, p) is None
    assert quantile_ranks(least, p) is not None
    short = quantile([float(value) for value in range(least - 1)], p)
    assert (short.low, short.high, short.needed_n) == (None, None, least)


@given(st.integers(6, 3000), st.sampled_from([10.0, 50.0, 90.0, 95.0, 99.0]))
def test_the_ranks_of_an_interval_have_the_probability_they_claim(n: int, p: float) -> None:
    ranks = quantile_ranks(n, p)
    if ranks is None:
        assert n < needed_n(p)
        return
    low, high = ranks
    assert 1 <= low <= high <= n
    q = p / 100
    inside = 0.0
    for k in range(low, high):
        log = (
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(q)
            + (n - k) * math.log1p(-q)
        )
        inside += math.exp(log)
    assert inside >= 0.95 - 1e-9


@pytest.mark.parametrize(("p", "n"), [(50, 40), (95, 200), (99, 500)])
def test_intervals_hold_the_true_percentile_of_a_known_distribution_95_times_in_100(p: float, n: int) -> None:
    draw = random.Random(p * n)
    truth = -math.log(1 - p / 100)  # of the exponential distribution
    hits = 0
    for _ in range(400):
        found = quantile(sorted(draw.expovariate(1.0) for _ in range(n)), p)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits >= 0.93 * 400  # 95 % promised; 2.2 standard errors of 400 draws


def test_dependent_samples_are_worth_fewer() -> None:
    draw = random.Random(3)
    level, values = 0.0, []
    for _ in range(4000):
        level = 0.9 * level + draw.gauss(0, 1)
        values.append(level)
    assert not looks_independent(values, sorted(values))
    # "Above the median" of such a series has autocorrelations of 2/pi asin(0.9^lag): 13 jobs are worth one.
    expected = 1 + 2 * sum(2 / math.pi * math.asin(0.9**lag) for lag in range(1, 200))
    (p50,) = quantiles(values, [50])
    assert 4000 / expected * 0.6 < p50.n_eff < 4000 / expected * 1.6
    assert p50.worth < p50.n_eff
    assert p50.low is not None
    constant = quantiles([1.0] * 100, [50])[0]
    assert (constant.low, constant.high, constant.n_eff) == (1.0, 1.0, 100)


def test_an_interval_at_a_small_effective_n_is_wider() -> None:
    draw = random.Random(5)
    values = sorted(draw.random() for _ in range(2000))
    free, bound = quantile(values, 95), quantile(values, 95, n_eff=80)
    assert free.low is not None
    assert bound.low is not None
    assert free.high is not None
    assert bound.high is not None
    assert bound.low < free.low < free.value < free.high < bound.high
    assert quantile(values, 95, n_eff=50).low is None


def test_a_run_in_two_states_gets_no_interval_however_many_jobs_it_has() -> None:
    draw = random.Random(7)
    values = [draw.gauss(6.9 if (at // 200) % 3 == 0 else 3.4, 0.05) for at in range(2400)]
    for found in quantiles(values, [50, 70, 95]):
        assert (found.low, found.high) == (None, None)
        assert found.n_eff < found.needed_n
    draw.shuffle(values)
    assert all(found.low is not None and found.n_eff == 2400 for found in quantiles(values, [50, 70, 95]))


@given(st.lists(st.booleans(), min_size=8, max_size=400))
def test_a_correlation_time_is_the_mean_power_of_the_lowest_cosine_terms(above: list[bool]) -> None:
    n, share = len(above), sum(above) / len(above)
    time, terms = correlation_time(above)
    assert terms <= max(6, 0.4 * n ** (2 / 3))
    expected = 1.0
    if 0 < share < 1:
        power = []
        for term in range(1, terms + 1):
            wave = (math.cos(math.pi * term * (at + 0.5) / n) for at in range(n))
            power.append(2 / n * sum((one - share) * up for one, up in zip(above, wave, strict=True)) ** 2)
        expected = sum(power) / terms / (share * (1 - share))
        assert terms <= 6 or n / terms >= 3 * max(1.0, time) * upper_bound(terms) - 1e-9
    assert time == pytest.approx(expected)


def test_long_samples_are_counted_in_batches_and_keep_their_correlation_time() -> None:
    draw = random.Random(9)
    above = [draw.random() < 0.3 for _ in range(4000)]
    steps = [one for one in above for _ in range(5)]  # every one five times
    assert correlation_time(above)[0] == pytest.approx(1, abs=0.6)
    assert correlation_time(steps)[0] == pytest.approx(5, abs=3)


def test_pooled_estimates_are_weighted_by_their_precision() -> None:
    assert pooled([(1.0, 0.1), (2.0, 0.1)]) == pytest.approx((1.5, 0.1 / math.sqrt(2)))
    assert pooled([(1.0, 0.1), (2.0, 10.0)])[0] == pytest.approx(1.0, abs=0.001)


def test_a_difference_is_found_where_there_is_one_and_not_where_there_is_none() -> None:
    draw = random.Random(11)
    a = sorted(draw.gauss(3450, 80) for _ in range(300))
    same = sorted(draw.gauss(3450, 80) for _ in range(300))
    slower = sorted(draw.gauss(3550, 80) for _ in range(300))
    of_same, of_slower = (difference_interval(a, b, 50, 300, 300) for b in (same, slower))
    assert of_same is not None
    assert of_slower is not None
    assert of_same[0] < 0 < of_same[1]
    assert 0 < of_slower[0] < 100 < of_slower[1] < 200
    assert difference_interval(a[:5], slower, 50, 5, 300) is None


def test_jain_is_one_for_equals_and_one_kth_for_a_loner() -> None:
    assert jain([5, 5, 5]) == 1.0
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)


# -- limits --


@given(
    st.sampled_from([limit.per_window for limit in RUNPOD_LIMITS.values()]),
    st.lists(st.floats(0, 2), min_size=1, max_size=400),
)
def test_no_ten_seconds_hold_more_requests_than_the_limit(per_window: int, gaps: list[float]) -> None:
    bucket = TokenBucket(per_window)
    now, sent = 100.0, []
    for gap in gaps:
        now += gap if gap > 1 else 0.0  # bursts: half of the requests come at the same moment as the one before
        sent.append(now + bucket.take(now))
    sent.sort()
    for first, start in enumerate(sent):
        assert sum(1 for at in sent[first:] if at < start + RATE_WINDOW_S) <= per_window


@pytest.mark.parametrize("name", list(RUNPOD_LIMITS))
def test_a_steady_flood_gets_nearly_all_of_the_limit_and_never_more(name: str) -> None:
    per_window = RUNPOD_LIMITS[name].per_window
    bucket = TokenBucket(per_window)
    sent = [bucket.take(5.0) for _ in range(3 * per_window)]
    assert sum(1 for at in sent if at < RATE_WINDOW_S) <= per_window
    assert sum(1 for at in sent if RATE_WINDOW_S <= at < 2 * RATE_WINDOW_S) >= max(0.85 * per_window - 1, 0)


# -- schedules --


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    assert list(Arrivals(steady(4, 2)).times_s()) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])


@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (4.0, 0.5), (0.25, 2.0)])
def test_random_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for(burstiness: float, spread: float) -> None:
    times = list(Arrivals(steady(10, 2000), burstiness, seed=1).times_s())
    assert len(times) == pytest.approx(20_000, rel=0.05)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation / mean == pytest.approx(spread, rel=0.05)


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(0, 20)), min_size=1, max_size=5),
    st.sampled_from([None, 1.0, 0.5]),
    st.integers(0, 99),
)
def test_any_stages_give_ascending_times_within_their_span(
    targets: list[tuple[float, float]], burst: float | None, seed: int
) -> None:
    arrivals = Arrivals(stages(targets), burst, seed)
    times = list(arrivals.times_s())
    assert times == sorted(times)
    assert all(-1e-9 <= at <= arrivals.duration_s + 1e-6 for at in times)
    if burst is None:
        assert abs(len(times) - arrivals.expected) <= 1
    assert times == list(arrivals.times_s())


def test_a_ramp_puts_three_quarters_of_its_requests_into_its_second_half() -> None:
    times = list(Arrivals((Segment(100, 0, 10),)).times_s())
    assert len(times) == pytest.approx(500, abs=1)
    assert sum(1 for at in times if at >= 50) / len(times) == pytest.approx(0.75, abs=0.01)


# -- polled totals --


@given(st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 300), st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_corrected_total_never_leaves_its_bounds(
    lower: float, width: float, rtt: float, delay: float, execution: float
) -> None:
    total = correct_total(lower_ms=lower, upper_ms=lower + width, rtt_min_ms=rtt, delay_ms=delay, exec_ms=execution)
    assert total.lower_ms <= total.corrected_ms <= total.upper_ms
    estimate = rtt + delay + execution
    assert total.inconsistent == (estimate < lower - 100 or estimate > lower + width + 100)


@pytest.mark.parametrize("gap_s", [0.25, 0.5, 1.0, 2.0, 5.0])
def test_correction_takes_the_bias_out_of_any_poll_gap(gap_s: float) -> None:
    draw = random.Random(2)
    errors = []
    for _ in range(300):
        truth = draw.gauss(3450, 80)
        polls = 1
        while polls * gap_s * 1000 < truth:
            polls += 1
        total = correct_total(
            lower_ms=(polls - 1) * gap_s * 1000,
            upper_ms=polls * gap_s * 1000 + 40,
            rtt_min_ms=40,
            delay_ms=600,
            exec_ms=truth - 640,
        )
        errors.append(abs(total.corrected_ms - truth))
    assert max(errors) < 50


def test_a_held_long_poll_is_itself_the_moment() -> None:
    total = correct_total(lower_ms=10, upper_ms=3460, rtt_min_ms=1, delay_ms=500, exec_ms=2800, held=True)
    assert total.corrected_ms == 3460


def test_adaptive_polling_starts_when_a_job_can_be_done_and_then_asks_every_fiftieth_of_its_age() -> None:
    pace = PollPace()
    for total in [3.2, 3.3, *[3.45] * 18]:
        pace.learn(total)
    assert pace.gap_s(0.1, 0) == pytest.approx(3.45 - 0.1, abs=0.3)
    assert pace.gap_s(3.4, 1) == pytest.approx(0.068, abs=0.001)
    assert pace.gap_s(0.5, 1) == 0.05
    assert PollPace(fixed_s=1.0).gap_s(3.4, 5) == 1.0


# -- units --


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("30m", 1800), ("1h30m", 5400), ("2d", 172_800)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


def test_times_are_shown_in_the_unit_people_think_in() -> None:
    assert [show_ms(ms) for ms in (0.4, 82.4, 3449.2, 13_823, 106_000, 900_000, math.inf, None)] == [
        "0.4 ms", "82 ms", "3.45 s", "13.8 s", "106 s", "15.0 min", "∞", "n/a",
    ]  # fmt: skip
    assert [show_duration(s) for s in (4.2, 65, 3725)] == ["4.2s", "1m05s", "1h02m05s"]


def test_the_stream_used_above_has_a_split_character() -> None:
    assert json.loads(EVENTS[0])["a"] == "zürich 🚀"
