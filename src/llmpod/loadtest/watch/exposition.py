"""Numbers of the catalogue, and Prometheus' text format of them.

The format is small enough for a load tester to write it without a client library:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from bisect import bisect_left
from collections.abc import Iterator

from llmpod.loadtest.watch.catalogue import CATALOGUE
from llmpod.metric import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Numbers:
    """The values of all metrics for one endpoint. Counters and histograms begin at zero, gauges when they are set."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._values: dict[str, dict[str | None, float]] = {
            row.name: {None: 0.0} if row.kind == "counter" else {} for row in CATALOGUE
        }
        self._counts = {row.name: [0] * (len(row.buckets) + 1) for row in CATALOGUE if row.buckets}
        self._sums = dict.fromkeys(self._counts, 0.0)
        self._bounds = {row.name: row.buckets for row in CATALOGUE}

    def set(self, name: str, value: float, state: str | None = None) -> None:
        """Set a gauge."""
        self._values[name][state] = value

    def add(self, name: str, amount: float = 1.0) -> None:
        """Add to a counter."""
        self._values[name][None] += amount

    def forget(self, name: str) -> None:
        """Drop a gauge's values: what is not known now must not look like what was known last."""
        self._values[name].clear()

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._counts[name][bisect_left(self._bounds[name], value)] += 1
        self._sums[name] += value

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        return "".join(line + "\n" for row in CATALOGUE for line in self._lines(row))

    def _lines(self, row: Metric) -> Iterator[str]:
        yield f"# HELP {row.name} {row.help}"
        yield f"# TYPE {row.name} {row.kind}"
        for state, value in self._values[row.name].items():
            yield f"{row.name}{self._labels(state=state)} {value:g}"
        if row.name in self._counts:
            seen = 0
            for bound, count in zip((*map(float, row.buckets), "+Inf"), self._counts[row.name], strict=True):
                seen += count
                yield f"{row.name}_bucket{self._labels(le=str(bound))} {seen}"
            yield f"{row.name}_sum{self._labels()} {self._sums[row.name]:.6f}"
            yield f"{row.name}_count{self._labels()} {seen}"

    def _labels(self, **more: str | None) -> str:
        labels = {"endpoint": self._endpoint, **more}
        return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items() if value) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
