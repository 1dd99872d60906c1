"""Run clock: milliseconds on a monotonic clock, and UTC timestamps."""

from datetime import UTC, datetime
from time import perf_counter


class Clock:
    """`offset_ms` continues the clock of a run that is resumed, so that its phases stay in order on one axis."""

    def __init__(self, offset_ms: float = 0.0) -> None:
        self._zero = perf_counter() - offset_ms / 1000

    def now_ms(self) -> float:
        return (perf_counter() - self._zero) * 1000

    def ms(self, perf_s: float) -> float:
        """A `perf_counter` reading on this run's axis."""
        return (perf_s - self._zero) * 1000


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
