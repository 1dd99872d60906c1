"""Pass rates of two quality runs: is B worse than A, beyond chance?"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpod.loadtest.quality.results import Group
from llmpod.loadtest.stats import two_shares


@dataclass(frozen=True, slots=True)
class Change:
    """An intent's pass rates. `clear`: they differ beyond chance, all intents of the comparison taken together."""

    intent: str
    a: float
    b: float
    rows_a: int
    rows_b: int
    clear: bool


def compare(a: Sequence[Group], b: Sequence[Group]) -> list[Change]:
    """The intents that both runs measured, in A's order. Rows count once, however often they were repeated."""
    others = {group.name: group for group in b}
    pairs = [(group, others[group.name]) for group in a if group.name in others]
    measured = [(x, y, x.share, y.share) for x, y in pairs if x.share is not None and y.share is not None]
    return [
        Change(x.name, of_a, of_b, x.rows, y.rows, _differ(x, y, of_a, of_b) < 0.05 / len(measured))
        for x, y, of_a, of_b in measured
    ]


def _differ(x: Group, y: Group, of_a: float, of_b: float) -> float:
    return two_shares(round(of_a * x.rows), x.rows, round(of_b * y.rows), y.rows)
