"""Stop signals that arrive before their job."""

from __future__ import annotations

FORGET_S = 30.0
"""How long RunPod may take to hand out a job whose stop has arrived already, and to stop one that has ended here."""


class EarlyStops:
    """Remembers stop signals of unknown jobs for a while. Times are monotonic seconds.

    A stop for a job that has just ended is dropped: RunPod may hand out the same id again (/retry), and that run was
    not stopped.
    """

    def __init__(self) -> None:
        self._stopped: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def remember(self, job_id: str, now: float) -> None:
        """Record a stop for a job that is not running."""
        _forget(self._ended, now)
        if job_id not in self._ended:
            _note(self._stopped, job_id, now)

    def has_ended(self, job_id: str, now: float) -> None:
        """Record that a job has ended."""
        _note(self._ended, job_id, now)

    def obey(self, job_id: str, now: float) -> bool:
        """Whether a stop for the job that starts now was recorded; removes it."""
        _forget(self._stopped, now)
        return self._stopped.pop(job_id, None) is not None


def _note(times: dict[str, float], job_id: str, now: float) -> None:
    times.pop(job_id, None)
    times[job_id] = now
    _forget(times, now)


def _forget(times: dict[str, float], now: float) -> None:
    """Remove expired entries; the oldest come first."""
    while times and now - next(iter(times.values())) > FORGET_S:
        del times[next(iter(times))]
