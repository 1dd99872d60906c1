"""Percentiles with 95 % confidence intervals, or "n/a" where the sample is too small.

Percentile: nearest rank (the smallest value that at least p % of the sample do not exceed): always a latency that
happened. Interval: distribution-free, from order statistics: the number of samples below the true quantile is binomial,
so two ranks bracket it with a known probability. When n is too small for any pair of ranks to reach 95 %, there is no
interval, and `needed_n` says what would do.

Dependence: latencies of one run are often not independent. `quantiles` counts how many independent ones they are worth,
and how well that is known (dependence.py).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from llmpod.loadtest.dependence import LEAST_TERMS, SHORT, STRETCHES, correlation_time, looks_independent, upper_bound

CONFIDENCE = 0.95
# See `quantiles`. Chosen on other queues, closed loops and series than those that `make bench-evidence` judges by.
LEAST, LEAST_OF_TAIL, LONG = 30, 60, 300
KURTOSIS = 4  # of a sum of busy times, per number of them: 3 if their lengths are exponential; a queue's vary more


@dataclass(frozen=True, slots=True)
class Quantile:
    """A percentile of a sample. `low`/`high` are None when `n_eff`, the number of independent samples that these are
    worth, is below `needed_n`. `worth`: the number of independent samples whose interval would be as wide: fewer than
    n_eff, where that is itself an estimate."""

    p: float
    value: float
    n: int
    n_eff: float
    low: float | None
    high: float | None
    needed_n: int
    worth: float

    @property
    def size(self) -> str:
        return f"n={self.n}" if self.n_eff > 0.9 * self.n else f"n_eff={self.n_eff:.0f}"


def nearest_rank(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile (0 < p <= 100) of an ascending sample."""
    if not ordered:
        raise ValueError("no samples")
    # The epsilon undoes binary fractions: 0.07 * 100 is 7.000000000000001, and rank 8 would be wrong.
    rank = math.ceil(p / 100 * len(ordered) - 1e-9)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def ranked(values: Iterable[float | None], *percentiles: float) -> list[float | None]:
    """Percentiles of a sample in any order. What is None is left out; of nothing, every percentile is None."""
    ordered = sorted(value for value in values if value is not None)
    return [nearest_rank(ordered, p) if ordered else None for p in percentiles]


def needed_n(p: float, confidence: float = CONFIDENCE) -> int:
    """The smallest n whose extremes bracket the p-th percentile with that confidence: p50 6, p90 29, p95 59, p99
    299."""
    q = p / 100
    n = 1
    while 1 - q**n - (1 - q) ** n < confidence - 1e-12:
        n += 1
    return n


@lru_cache(maxsize=4096)
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


@lru_cache(maxsize=1024)
def student(level: float, degrees: int) -> float:
    """The two-sided critical value, at that level, of Student's t with so many degrees of freedom."""

    def beyond(t: float) -> float:
        # Abramowitz and Stegun, 26.7.3 and 26.7.4.
        theta = math.atan(t / math.sqrt(degrees))
        odd = degrees % 2
        term = math.cos(theta) if odd else 1.0
        series = term if degrees > 1 else 0.0
        for k in range(2 + odd, degrees - 1, 2):
            term *= math.cos(theta) ** 2 * (k - 1) / k
            series += term
        within = math.sin(theta) * series
        return 1 - (2 / math.pi * (theta + within) if odd else within)

    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > level else (low, middle)
    return high


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
        # Ranks of whole samples, carried over to n: the same share of the sample lies below their middle.
        low = ordered[max(1, math.floor((ranks[0] - 0.5) * n / whole + 0.5)) - 1]
        high = ordered[min(n, math.ceil((ranks[1] - 0.5) * n / whole + 0.5)) - 1]
    return Quantile(p, nearest_rank(ordered, p), n, eff, low, high, needed_n(p, confidence), eff)


def quantiles(
    values: Sequence[float], percentiles: Sequence[float], confidence: float = CONFIDENCE, *, hidden: bool = True
) -> tuple[Quantile, ...]:
    """The percentiles of a sample in order of sending, each with its interval or without one.

    - A sample of 300 and more that looks independent is taken to be so. Below that a dependence may hide: the interval
      of a sample that looks independent pays for the error of its correlation time all the same (not with
      `hidden=False`, where a queue cannot be the reason). Below 30 jobs there is no interval, below 60 none of a tail.
    - Any other is worth n / correlation time, and needs 100 jobs, and six stretches of three correlation times, by an
      upper bound, at the median and at the percentile itself.
    - Runs near that limit get there by having met few of the busy times. Their correlation time is drawn towards its
      upper bound, by the share of the limit in n_eff.

    `make bench-evidence` measures how often intervals hold."""
    n, ordered = len(values), sorted(values)
    independent = looks_independent(values, ordered)
    normal = NormalDist().inv_cdf((1 + confidence) / 2)

    def sized(p: float) -> tuple[float, float, float]:
        """(n_eff, worth, the least n_eff)"""
        plain = max(LEAST_OF_TAIL if abs(p - 50) > 25 else LEAST, needed_n(p, confidence))
        if independent and (n >= LONG or not hidden):
            return n, n, plain
        at = nearest_rank(ordered, p)
        time, terms = correlation_time([value > at for value in values])
        n_eff = n / max(1.0, time)
        # Times above a percentile are few, and of unequal length: their kurtosis costs degrees of freedom.
        kurtosis = (1 if independent else KURTOSIS) / (p / 100 * (1 - p / 100))
        degrees = max(4, int(1 / (1 / terms + kurtosis / 2 / n_eff)))
        shrink = (normal / student(1 - confidence, degrees)) ** 2
        worth = n / max(time, 1e-9) * shrink
        if independent:
            return n, min(n, worth), plain
        least = max(STRETCHES * LEAST_TERMS * upper_bound(terms), needed_n(p, confidence) / shrink)
        worth /= 1 + (upper_bound(degrees) - 1) * min(1.0, least / n_eff)
        return n_eff, min(n, worth), max(SHORT, least) if n < SHORT else least

    whole = sized(50) if values else (0, 1, 1)
    out = []
    for p in percentiles:
        n_eff, worth, least = sized(p)
        if whole[0] < whole[2]:  # what changes in a run as a whole shows at the median
            n_eff, least = min(n_eff, whole[0]), max(least, whole[2])
        if n_eff >= least:
            least = max(least, needed_n(p, confidence) * n_eff / worth)
        found = replace(quantile(ordered, p, worth, confidence), n_eff=float(n_eff), needed_n=math.ceil(least))
        out.append(found if n_eff >= least else replace(found, low=None, high=None))
    return tuple(out)


def difference_interval(
    a: Sequence[float], b: Sequence[float], p: float, eff_a: float, eff_b: float, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """An interval of percentile(b) - percentile(a), both ascending, from their own intervals: Zou and Donner's MOVER
    (Statistics in Medicine, 2008). None where one of them has none."""
    of_a, of_b = quantile(a, p, eff_a, confidence), quantile(b, p, eff_b, confidence)
    if of_a.low is None or of_a.high is None or of_b.low is None or of_b.high is None:
        return None
    gap = of_b.value - of_a.value
    below = math.hypot(of_b.value - of_b.low, of_a.high - of_a.value)
    return gap - below, gap + math.hypot(of_b.high - of_b.value, of_a.value - of_a.low)


def pooled(estimates: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of (value, half-width of its interval) weighted by precision, with its half-width: a fixed-effect
    meta-analysis."""
    weight = math.fsum(reach**-2 for _, reach in estimates)
    return math.fsum(value / reach**2 for value, reach in estimates) / weight, weight**-0.5


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index: 1 when all are equal, 1/k when one of k has everything."""
    squares = math.fsum(value * value for value in values)
    return None if squares == 0 else math.fsum(values) ** 2 / (len(values) * squares)
