"""Job feed of a closed loop: warm-up, measured, or filler jobs while the last measured ones finish."""

from dataclasses import dataclass, field

from llmpod.loadtest.model.job_record import Role
from llmpod.loadtest.model.plan import Phase


@dataclass(slots=True)
class Feed:
    """Hands out (role, index) pairs; reads no clock, times are arguments.

    Warm-up and measured jobs follow each other without a pause, so the first measured job meets the load that the phase
    is about. At the end the clients go on with fillers until the last measured answer is there: otherwise the last
    measured jobs would run under less and less load, which shortens their latency.
    """

    phase: Phase
    warmup_sent: int = 0
    measured_sent: int = 0
    measured_done: int = 0
    cooldown_sent: int = 0
    begun_ms: float | None = None
    window_start_ms: float | None = None
    window_end_ms: float | None = None
    # Of a run that is resumed: measured jobs that are done already, and the time they took of --duration.
    already: frozenset[int] = field(default_factory=frozenset)
    spent_ms: float = 0.0
    _next_measured: int = 0

    @property
    def remaining(self) -> int | None:
        """Measured jobs still to be sent; None when a duration ends the phase."""
        if self.phase.requests is None:
            return None
        return max(0, self.phase.requests - len(self.already) - self.measured_sent)

    def next(self, now_ms: float) -> tuple[Role, int] | None:
        """Return the next (role, index), or None when the client should stop."""
        if self.begun_ms is None:
            self.begun_ms = now_ms
        warming = self.warmup_sent < self.phase.warmup_requests or now_ms - self.begun_ms < self.phase.warmup_s * 1000
        if warming and not self._measured_over(now_ms):
            self.warmup_sent += 1
            return "warmup", self.warmup_sent - 1
        if not self._measured_over(now_ms):
            if self.window_start_ms is None:
                self.window_start_ms = now_ms
            self.measured_sent += 1
            while self._next_measured in self.already:
                self._next_measured += 1
            self._next_measured += 1
            return "measured", self._next_measured - 1
        waiting = self.measured_done < self.measured_sent
        if self.phase.fill_until_done and self.phase.concurrency > 1 and waiting:
            self.cooldown_sent += 1
            return "cooldown", self.cooldown_sent - 1
        return None

    def done(self, role: Role, now_ms: float) -> None:
        if role == "measured":
            self.measured_done += 1
            self.window_end_ms = now_ms

    def _measured_over(self, now_ms: float) -> bool:
        if self.remaining == 0:
            return True
        duration_s = self.phase.duration_s
        if duration_s is None:
            return False
        if self.window_start_ms is None:
            return self.spent_ms >= duration_s * 1000
        return now_ms - self.window_start_ms + self.spent_ms >= duration_s * 1000
