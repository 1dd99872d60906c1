"""Dependence of neighbours in a sample: whether it is seen, and how many jobs in a row are worth one.

Where jobs wait for each other, or workers come and go, a run of n jobs knows a percentile no better than fewer that are
independent. How many comes from the spectrum at frequency 0 of "was above the percentile", by the estimator that
Lazarus, Lewis, Stock and Watson recommend ("HAR Inference: Recommendations for Practice", 2018): the mean power of the
lowest cosine terms. Each is a degree of freedom, so Student's t says what the estimate's own error costs.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from operator import mul

# Chosen as those of stats.py.
SHORT = 100
SUSPECTED = 0.8
LEAST_TERMS, MOST_TERMS, MOST_BATCHES = 6, 64, 512
STRETCHES = 3


def looks_independent(values: Sequence[float], ordered: Sequence[float]) -> bool:
    """Whether neighbours (in order of sending) are no more alike than chance makes them, on ranks, by lag 1 and by lags
    1 to 3 together. A low bar: one in four independent samples does not pass it, and is then measured for dependence.
    """
    n = len(values)
    ranks = [(bisect_left(ordered, value) + bisect_right(ordered, value) - n) / 2 for value in values]
    variance = sum(map(mul, ranks, ranks))
    if n < 10 or not variance:
        return True
    r = [sum(map(mul, ranks, islice(ranks, lag, None))) / variance for lag in (1, 2, 3)]
    suspicion: float = max(r[0], sum(r) / math.sqrt(3)) * math.sqrt(n)
    return suspicion <= SUSPECTED


def correlation_time(above: Sequence[bool]) -> tuple[float, int]:
    """(how many jobs in a row are worth one for a percentile, degrees of freedom of this estimate), from which jobs
    were above it: the spectrum at frequency 0 over the variance, by the equal-weighted cosine estimator.

    Its number of terms is 0.4 n^(2/3), and fewer, down to six, where n / terms jobs are not three times an upper bound
    of the correlation time. Short runs have four to eight."""
    n = len(above)
    width = -(-n // MOST_BATCHES)
    counts = [sum(above[at : at + width]) for at in range(0, n - width + 1, width)]
    share = sum(counts) / width / max(1, len(counts))
    terms = min(MOST_TERMS, max(LEAST_TERMS if n >= SHORT else 4, int(0.4 * n ** (2 / 3))))
    if not 0 < share < 1:
        return 1.0, terms
    scale = 2 / len(counts) / width / (share * (1 - share))
    power = [scale * sum(map(mul, counts, _cosine(term, len(counts)))) ** 2 for term in range(1, terms + 1)]
    time = 0.0
    while True:
        time = max(time, math.fsum(power[:terms]) / terms)
        if n < SHORT or terms == LEAST_TERMS or n / terms >= STRETCHES * max(1.0, time) * upper_bound(terms):
            return time, terms
        terms = max(LEAST_TERMS, int(terms / 1.25))


@lru_cache(maxsize=256)
def _cosine(term: int, batches: int) -> tuple[float, ...]:
    return tuple(math.cos(math.pi * term * (at + 0.5) / batches) for at in range(batches))


def upper_bound(degrees: int) -> float:
    """An estimate of a variance times this is its upper bound, at 95 % (Wilson and Hilferty's chi-square)."""
    part = 2 / 9 / degrees
    return float(1 - part - 1.645 * math.sqrt(part)) ** -3
