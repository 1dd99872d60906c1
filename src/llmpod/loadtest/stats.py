"""Percentiles with distribution-free confidence intervals, or "n/a" where the sample is too small.

Percentile: nearest rank (the smallest value that at least p % of the sample do not exceed): always a latency that
happened. Interval: distribution-free, from order statistics: the number of samples below the true quantile is binomial,
so two ranks bracket it with a known probability. When n is too small for any pair of ranks to reach 95 %, there is no
interval, and `needed_n` says what would do. Dependence: latencies of one run are often not independent; `quantiles`
finds out, and then counts how many independent ones they are worth.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import mul
from statistics import NormalDist

CONFIDENCE = 0.95
# See `dependent` and `quantiles`. Chosen on other queues and series than `make bench-evidence` judges them by.
SUSPECTED, SUSPECTED_SHORT, SHORT = 1.9, 0.8, 300
ERRORS = 2.5
LEAST, LEAST_OF_TAIL = 30, 60
HIDDEN_BELOW, HIDDEN = 100, 2
MANY = 3000
_DIGITS = bytes.maketrans(b"\x00\x01", b"01")


@dataclass(frozen=True, slots=True)
class Quantile:
    """A percentile of a sample. `low`/`high` are None when n (or n_eff) is below `needed_n`."""

    p: float
    value: float
    n: int
    n_eff: float
    low: float | None
    high: float | None
    needed_n: int

    @property
    def worth(self) -> float:
        """The number of independent samples that the interval is as wide as: fewer than n_eff in a short run."""
        return self.n_eff / HIDDEN if self.n_eff == self.n < HIDDEN_BELOW else self.n_eff


def nearest_rank(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile (0 < p <= 100) of an ascending sample."""
    if not ordered:
        raise ValueError("no samples")
    # The epsilon undoes binary fractions: 0.07 * 100 is 7.000000000000001, and rank 8 would be wrong.
    rank = math.ceil(p / 100 * len(ordered) - 1e-9)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def needed_n(p: float, confidence: float = CONFIDENCE) -> int:
    """The smallest n whose extremes bracket the p-th percentile with that confidence: p50 6, p90 29, p95 59, p99
    299."""
    q = p / 100
    n = 1
    while 1 - q**n - (1 - q) ** n < confidence - 1e-12:
        n += 1
    return n


def quantile_ranks(n: int, p: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """1-based ranks (l, u) with P(X_l <= true percentile <= X_u) >= confidence, or None when n is too small."""
    if p < 50:
        mirrored = quantile_ranks(n, 100 - p, confidence)
        return None if mirrored is None else (n + 1 - mirrored[1], n + 1 - mirrored[0])
    q = p / 100
    if n < 1:
        return None
    alpha = 1 - confidence
    sd = math.sqrt(n * q * (1 - q))
    first, last = max(0, math.floor(n * q - 8 * sd - 8)), min(n, math.ceil(n * q + 8 * sd + 8))
    mass = [_binomial_pmf(k, n, q) for k in range(first, last + 1)]
    # Upper rank u: P(B >= u) <= alpha/2. When none exists, the largest value must do, at the price P(B = n).
    upper, tail = n, 0.0
    for k in range(last, first, -1):
        if tail + mass[k - first] > alpha / 2:
            upper = k + 1
            break
        tail += mass[k - first]
    if upper > n:
        upper, tail = n, q**n
    # Lower rank l: P(B <= l-1) <= what is left of alpha.
    spare, lower, below = alpha - tail if upper == n else alpha / 2, 0, 0.0
    for k in range(first, last + 1):
        if below + mass[k - first] > spare:
            break
        below += mass[k - first]
        lower = k + 1
    return (lower, upper) if lower >= 1 and below + tail <= alpha + 1e-12 else None


def _binomial_pmf(k: int, n: int, q: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(q) + (n - k) * math.log1p(-q))


def share_is_clear(hits: int, n: int, limit: float, level: float = 1 - CONFIDENCE) -> bool:
    """Whether `hits` of `n` lie beyond chance on their side of a share of `limit` (exact binomial, two-sided)."""
    if not 0 < limit < 1:
        return True
    below = math.fsum(_binomial_pmf(k, n, limit) for k in range(hits + 1))
    at_least = 1 - below + _binomial_pmf(hits, n, limit)
    return min(below, at_least) <= level / 2


def wilson(share: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share measured on `n` samples: also near 0 and 1 it stays within them."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def two_shares(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """The two-sided p-value of Fisher's exact test: how likely shares as different as these are, were they one."""
    hits, n = hits_a + hits_b, n_a + n_b

    def log_choose(total: int, some: int) -> float:
        return math.lgamma(total + 1) - math.lgamma(some + 1) - math.lgamma(total - some + 1)

    def chance(k: int) -> float:
        return math.exp(log_choose(hits, k) + log_choose(n - hits, n_a - k) - log_choose(n, n_a))

    seen = chance(hits_a)
    span = range(max(0, n_a - (n - hits)), min(hits, n_a) + 1)
    return min(1.0, math.fsum(value for k in span if (value := chance(k)) <= seen * (1 + 1e-9)))


def student_8(level: float) -> float:
    """The two-sided critical value, at that level, of Student's t with the 7 degrees of freedom of 8 batches."""

    def beyond(t: float) -> float:
        # The closed form of the distribution for 7 degrees of freedom.
        theta = math.atan(t / math.sqrt(7))
        cosine = math.cos(theta)
        series = cosine + 2 / 3 * cosine**3 + 8 / 15 * cosine**5
        return 1 - 2 / math.pi * (theta + math.sin(theta) * series)

    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > level else (low, middle)
    return high


def lag1(values: Sequence[float]) -> float:
    """Lag-1 autocorrelation; 0 for fewer than 10 values, constant ones, and what chance alone would give."""
    n = len(values)
    if n < 10:
        return 0.0
    mean = math.fsum(values) / n
    deviations = [value - mean for value in values]
    variance = sum(map(mul, deviations, deviations))
    if variance <= 0:
        return 0.0
    r = sum(map(mul, deviations, itertools.islice(deviations, 1, None))) / variance
    return r if abs(r) > 2 / math.sqrt(n) else 0.0


def effective_n(values: Sequence[float]) -> float:
    """How many independent samples these (in order of sending) are worth. Never more than there are."""
    n = len(values)
    r = min(lag1(values), 0.9999)
    return float(n) if r <= 0 else max(1.0, n * (1 - r) / (1 + r))


def quantile(
    ordered: Sequence[float], p: float, n_eff: float | None = None, confidence: float = CONFIDENCE
) -> Quantile:
    """A percentile of an ascending sample with its interval, computed as if there were only `n_eff` samples."""
    n = len(ordered)
    eff = min(float(n), n_eff if n_eff is not None else float(n))
    whole = max(1, math.floor(eff))
    ranks = quantile_ranks(whole, p, confidence)
    low = high = None
    if ranks is not None:
        # Ranks of whole samples, carried over to n: the same share of the sample lies below.
        low = ordered[max(0, math.floor((ranks[0] - 1) * n / whole))]
        high = ordered[min(n - 1, math.ceil(ranks[1] * n / whole) - 1)]
    return Quantile(p, nearest_rank(ordered, p), n, eff, low, high, needed_n(p, confidence))


def dependent(values: Sequence[float]) -> bool:
    """Whether neighbours (in order of sending) are more alike than chance makes them: on ranks, by lag 1 and by lags 1
    to 3 together. Short runs are suspected sooner: a queue hides well there.
    """
    n = len(values)
    if n < 10:
        return False
    if n > MANY:  # enough for the coarsest of ranks: above the median or not
        middle = nearest_rank(sorted(values), 50)
        r = list(itertools.islice(_autocorrelations([value > middle for value in values]), 3))
    else:
        ranks = [0.0] * n
        for rank, at in enumerate(sorted(range(n), key=values.__getitem__)):
            ranks[at] = rank - (n - 1) / 2
        variance = n * (n * n - 1) / 12
        r = [sum(map(mul, ranks, itertools.islice(ranks, lag, None))) / variance for lag in (1, 2, 3)]
    return bool(r) and max(r[0], sum(r) / math.sqrt(3)) * math.sqrt(n) > (SUSPECTED_SHORT if n < SHORT else SUSPECTED)


def correlation_time(above: Sequence[bool]) -> float:
    """How many jobs in a row are worth one, for a percentile: 1 + 2 x the sum of the autocorrelations of "was above
    it", summed up to six such times (Sokal's window), and ERRORS standard errors more. At least 1.

    A run that met few of the busy times shows too small a value, and with it would get an interval that does not hold:
    hence the upper bound. Its error is that of the number of independent stretches on the rarer side of the percentile.
    """
    n, ones = len(above), sum(above)
    total, lag = 1.0, 0
    for r in _autocorrelations(above):
        lag += 1
        total += 2 * r
        if lag >= 6 * total:
            break
    total = max(1.0, total)
    return total * (1 + ERRORS * math.sqrt(12 * total / min(ones, n - ones))) if lag else 1.0


def _autocorrelations(above: Sequence[bool]) -> Iterator[float]:
    """At lags 1, 2, 3, …; nothing where all are alike."""
    n = len(above)
    # As one whole number, a bit per job: counting pairs at a lag is an AND and a count, for any number of jobs.
    bits = int(bytes(above).translate(_DIGITS), 2) if n else 0
    ones = bits.bit_count()
    mean = ones / n if n else 0.0
    for lag in range(1, n if 0 < ones < n else 0):
        pairs = (bits & (bits >> lag)).bit_count()
        ends = (bits >> lag).bit_count() + (bits & ((1 << (n - lag)) - 1)).bit_count()
        yield (pairs - mean * ends + (n - lag) * mean * mean) / n / (mean * (1 - mean))


def quantiles(
    values: Sequence[float], percentiles: Sequence[float], confidence: float = CONFIDENCE, *, hidden: bool = True
) -> tuple[Quantile, ...]:
    """The percentiles of a sample in order of sending, each with its interval or without one.

    Where neighbours depend on each other (a queue, a change of workers), an interval is computed from n divided by the
    upper bound of the percentile's correlation time, and needs 60 of those at least. Below 30 jobs there is no
    interval, below 60 none of a tail. Below 100 jobs a weak dependence cannot be seen, and `hidden` makes the interval
    as wide as half as many would: not where a queue cannot be the reason. `make bench-evidence` measures how often
    intervals hold.
    """
    n, ordered, linked = len(values), sorted(values), dependent(values)
    # Above the median or not: what changes in a run as a whole shows there first.
    middle = nearest_rank(ordered, 50)
    whole = correlation_time([value > middle for value in values]) if linked else 1.0
    short = hidden and n < HIDDEN_BELOW and not linked
    out = []
    for p in percentiles:
        at, n_eff, needed = nearest_rank(ordered, p), float(n), needed_n(p, confidence)
        if linked:
            n_eff /= max(whole, correlation_time([value > at for value in values]))
        elif short:
            needed = max(needed, min(HIDDEN_BELOW, HIDDEN * needed))
        needed = max(LEAST_OF_TAIL if linked or abs(p - 50) > 25 else LEAST, needed)
        found = quantile(ordered, p, n_eff / HIDDEN if short else n_eff, confidence)
        found = replace(found, n_eff=n_eff, needed_n=needed)
        out.append(found if n_eff >= needed else replace(found, low=None, high=None))
    return tuple(out)


def difference_intervals(
    a: Sequence[float],
    b: Sequence[float],
    p: float,
    eff_a: float,
    eff_b: float,
    confidences: Sequence[float] = (CONFIDENCE,),
    *,
    rounds: int = 4000,
    seed: int = 1,
) -> list[tuple[float, float]]:
    """Intervals of percentile(b) - percentile(a), both ascending, one per confidence.

    The rank of a true quantile is Beta distributed, so each round draws a rank from that instead of resampling the
    data.
    """
    draw = random.Random(seed)  # noqa: S311 - resampling
    gaps = sorted(_draw_quantile(draw, b, p, eff_b) - _draw_quantile(draw, a, p, eff_a) for _ in range(rounds))
    return [(nearest_rank(gaps, 50 * (1 - one)), nearest_rank(gaps, 50 * (1 + one))) for one in confidences]


def _draw_quantile(draw: random.Random, ordered: Sequence[float], p: float, n_eff: float) -> float:
    n = max(n_eff, 2.0)
    share = draw.betavariate(p / 100 * n + 0.5, (1 - p / 100) * n + 0.5)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index: 1 when all are equal, 1/k when one of k has everything."""
    squares = math.fsum(value * value for value in values)
    return None if squares == 0 else math.fsum(values) ** 2 / (len(values) * squares)
