"""Polling of /status, where a long poll is not available: when to ask, and the total time of a job that was polled.

A poll sees a job's end late, by anything up to the gap between two polls. What is certain are two bounds: the job was
not done when the last poll that said so was sent, and it was done when the poll that said so came back. RunPod's own
`delayTime + executionTime`, plus one round trip to carry the request and the answer, says where between the two it was;
outside of them it is not used.
"""

from bisect import insort
from dataclasses import dataclass, field

FIRST_GUESS_S = 0.25
SHORTEST_S = 0.05
LONGEST_S = 5.0
KEPT = 200
# A gap between RunPod's times and the bounds beyond this is named: a retry, a restarted worker, a clock that stepped.
INCONSISTENT_MS = 100.0


@dataclass(slots=True)
class PollPace:
    """Asks first when a job of this run can be done (the p10 of those before it), then every 2 % of its age, 50 ms at
    least.

    `fixed_s` overrules both: a constant gap, as most clients have it.
    """

    fixed_s: float | None = None
    _totals_s: list[float] = field(default_factory=list)

    def learn(self, total_s: float) -> None:
        insort(self._totals_s, total_s)
        if len(self._totals_s) > KEPT:
            # Dropping the slowest half now and then would skew p10; dropping the two ends keeps it.
            del self._totals_s[0], self._totals_s[-1]

    def gap_s(self, age_s: float, polls: int) -> float:
        """Seconds from now to the next poll of a job sent `age_s` ago and polled `polls` times."""
        if self.fixed_s is not None:
            return self.fixed_s
        if polls == 0:
            if not self._totals_s:
                return FIRST_GUESS_S
            p10 = self._totals_s[len(self._totals_s) // 10]
            return min(max(SHORTEST_S, p10 - age_s), 60.0)
        return min(max(SHORTEST_S, 0.02 * age_s), LONGEST_S)


@dataclass(frozen=True, slots=True)
class PolledTotal:
    """Milliseconds since the job was sent."""

    corrected_ms: float
    lower_ms: float
    upper_ms: float
    inconsistent: bool


def correct_total(
    *,
    lower_ms: float,
    upper_ms: float,
    rtt_min_ms: float | None,
    delay_ms: float | None,
    exec_ms: float | None,
    held: bool = False,
) -> PolledTotal:
    """The total of a polled job.

    `lower_ms`: send time of the last poll that found it unfinished (or when it was accepted). `upper_ms`: when the
    final reply was received. `held`: that reply came out of a long poll that was already waiting when the job ended, so
    `upper_ms` is itself the moment; nothing is to be corrected.
    """
    lower_ms = min(lower_ms, upper_ms)
    if delay_ms is None or exec_ms is None:
        return PolledTotal(upper_ms, lower_ms, upper_ms, inconsistent=False)
    estimate = (rtt_min_ms or 0.0) + delay_ms + exec_ms
    inconsistent = estimate < lower_ms - INCONSISTENT_MS or estimate > upper_ms + INCONSISTENT_MS
    if held:
        return PolledTotal(upper_ms, lower_ms, upper_ms, inconsistent)
    return PolledTotal(min(max(estimate, lower_ms), upper_ms), lower_ms, upper_ms, inconsistent)
