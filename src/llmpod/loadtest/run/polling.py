"""Polling intervals for /status, where a long poll is not available."""

from bisect import insort
from dataclasses import dataclass, field

FIRST_GUESS_S = 0.25
SHORTEST_S = 0.05
LONGEST_S = 5.0
KEPT = 200


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
