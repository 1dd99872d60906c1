"""Metric: a row of a catalogue of Prometheus metrics. The worker and `llmpod loadtest watch` have one catalogue each.

The metric objects, docs/metrics.md, the alert rules and the dashboard (ops/) are made from the rows or checked against
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

OTHER = "other"
"""Stands for every value of a label that is not among its values."""


@dataclass(frozen=True)
class Metric:
    """One metric. The name ends in its unit, as Prometheus' naming rules ask: _seconds, _bytes, _total."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # each with its values; empty: the operator names them
    buckets: tuple[float, ...] = ()  # upper bounds, of a histogram

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count")) if self.buckets else (self.name,)

    def value_of(self, label: str, given: object) -> str:
        """The value to use for a label: the given one if it is in the label's closed set, else `other`."""
        value, known = str(given), self.labels[label]
        return value if not known or value in known else OTHER
