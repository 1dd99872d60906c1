"""Percentiles that can be believed, and a clear "n/a" where they cannot.

Percentile: nearest rank (the smallest value that at least p % of the sample do not exceed): always a latency that
happened. Interval: distribution-free, from order statistics: the number of samples below the true quantile is binomial,
so two ranks bracket it with a known probability. When n is too small for any pair of ranks to reach 95 %, there is no
interval, and `needed_n` says what would do. Dependence: latencies of one run are not independent. n_eff = n(1-r)/(1+r),
r being the lag-1 autocorrelation in order of sending, is what the interval is computed from.
"""

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from operator import mul

CONFIDENCE = 0.95


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


def quantile(ordered: Sequence[float], p: float, n_eff: float | None = None) -> Quantile:
    """A percentile of an ascending sample with its interval, computed as if there were only `n_eff` samples."""
    n = len(ordered)
    eff = min(float(n), n_eff if n_eff is not None else float(n))
    whole = max(1, math.floor(eff))
    ranks = quantile_ranks(whole, p)
    low = high = None
    if ranks is not None:
        # Ranks of whole samples, carried over to n: the same share of the sample lies below.
        low = ordered[max(0, math.floor((ranks[0] - 1) * n / whole))]
        high = ordered[min(n - 1, math.ceil(ranks[1] * n / whole) - 1)]
    return Quantile(p, nearest_rank(ordered, p), n, eff, low, high, needed_n(p))


def block_bootstrap(
    values: Sequence[float],
    times_s: Sequence[float],
    percentiles: Sequence[float],
    block_s: float,
    *,
    rounds: int = 400,
    seed: int = 1,
) -> dict[float, tuple[float, float]]:
    """A 95 % interval of each percentile that survives dependence within blocks of `block_s` seconds; {} below 6
    blocks.

    Whole blocks are drawn with replacement. A percentile of a draw is found by bisection on the sorted sample, and how
    many values of each block lie below a point of it is counted once for all draws: the cost grows with the number of
    blocks and not with the number of samples.
    """
    start = min(times_s, default=0.0)
    blocks: dict[int, list[float]] = {}
    for value, at in zip(values, times_s, strict=True):
        blocks.setdefault(int((at - start) // block_s), []).append(value)
    if len(blocks) < 6:
        return {}
    pool = [sorted(block) for block in blocks.values()]
    sizes = [len(block) for block in pool]
    grid = sorted(values)

    @cache
    def up_to(middle: int) -> list[int]:
        return [bisect_right(block, grid[middle]) for block in pool]

    draw = random.Random(seed)  # noqa: S311 - resampling
    found: dict[float, list[float]] = {p: [] for p in percentiles}
    for _ in range(rounds):
        times = [0] * len(pool)
        for _ in pool:
            times[draw.randrange(len(pool))] += 1
        whole = sum(map(mul, times, sizes))
        for p, so_far in found.items():
            wanted = math.ceil(p / 100 * whole)
            low, high = 0, len(grid) - 1
            while low < high:
                middle = (low + high) // 2
                if sum(map(mul, times, up_to(middle))) >= wanted:
                    high = middle
                else:
                    low = middle + 1
            so_far.append(grid[low])
    return {p: (nearest_rank(sorted(some), 2.5), nearest_rank(sorted(some), 97.5)) for p, some in found.items()}


def difference_interval(
    a: Sequence[float], b: Sequence[float], p: float, eff_a: float, eff_b: float, *, rounds: int = 2000, seed: int = 1
) -> tuple[float, float]:
    """A 95 % interval of percentile(b) - percentile(a), both ascending.

    The rank of a true quantile is Beta distributed, so each round draws a rank from that instead of resampling the
    data.
    """
    draw = random.Random(seed)  # noqa: S311 - resampling
    gaps = sorted(_draw_quantile(draw, b, p, eff_b) - _draw_quantile(draw, a, p, eff_a) for _ in range(rounds))
    return nearest_rank(gaps, 2.5), nearest_rank(gaps, 97.5)


def _draw_quantile(draw: random.Random, ordered: Sequence[float], p: float, n_eff: float) -> float:
    n = max(n_eff, 2.0)
    share = draw.betavariate(p / 100 * n + 0.5, (1 - p / 100) * n + 0.5)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index: 1 when all are equal, 1/k when one of k has everything."""
    squares = math.fsum(value * value for value in values)
    return None if squares == 0 else math.fsum(values) ** 2 / (len(values) * squares)
