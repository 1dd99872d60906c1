"""Arrival schedules of an open loop, generated from a seed before the first request is sent.

Every open shape is the same two things: a rate that changes with time (a chain of straight lines), and a stream of
"units of work due" that is mapped through the rate's integral. Constant arrivals take the units 0, 1, 2, …; Poisson and
gamma arrivals take random gaps of mean 1. So a Poisson ramp, or gamma stages, need no code of their own.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """`duration_s` seconds during which the rate goes in a straight line from `start_per_s` to `end_per_s`."""

    duration_s: float
    start_per_s: float
    end_per_s: float

    @property
    def units(self) -> float:
        return self.duration_s * (self.start_per_s + self.end_per_s) / 2


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`burstiness`: None is constant spacing, 1 is Poisson, below 1 is burstier than Poisson (gamma gaps of that
    shape)."""

    segments: tuple[Segment, ...]
    burstiness: float | None = None
    seed: int = 0

    @property
    def duration_s(self) -> float:
        return sum(segment.duration_s for segment in self.segments)

    @property
    def expected(self) -> float:
        return sum(segment.units for segment in self.segments)

    def times_s(self) -> Iterator[float]:
        """Due times in seconds from the start, ascending. The same seed gives the same times on every machine."""
        begun_s = begun_units = 0.0
        units = self._units()
        due = next(units)
        for segment in self.segments:
            end_units = begun_units + segment.units
            while due < end_units:
                yield begun_s + _time_within(segment, due - begun_units)
                due = next(units)
            begun_s += segment.duration_s
            begun_units = end_units

    def _units(self) -> Iterator[float]:
        if self.burstiness is None:
            step = 0
            while True:
                yield float(step)
                step += 1
        draw = random.Random(self.seed)  # noqa: S311 - a load schedule, not a secret
        due = 0.0
        while True:
            due += draw.gammavariate(self.burstiness, 1.0 / self.burstiness)
            yield due


def _time_within(segment: Segment, units: float) -> float:
    """Seconds into the segment at which its integral reaches `units`: the root of a*t^2/2 + start*t = units."""
    if segment.duration_s == 0 or units <= 0:
        return 0.0
    slope = (segment.end_per_s - segment.start_per_s) / segment.duration_s
    root = math.sqrt(max(segment.start_per_s**2 + 2 * slope * units, 0.0))
    # The stable form of the quadratic formula: no cancellation when the slope is small.
    return min(2 * units / (segment.start_per_s + root), segment.duration_s)


def steady(rate_per_s: float, duration_s: float) -> tuple[Segment, ...]:
    return (Segment(duration_s, rate_per_s, rate_per_s),)


def stages(targets: list[tuple[float, float]], start_per_s: float = 0.0) -> tuple[Segment, ...]:
    """k6's stages: (duration, target) pairs, each a straight line from the target before it."""
    out = []
    before = start_per_s
    for duration_s, target in targets:
        out.append(Segment(duration_s, before, target))
        before = target
    return tuple(out)
