"""Abort conditions of a run: cost, failures, no workers, or an objective that cannot be met."""

from collections.abc import Callable
from dataclasses import dataclass, field

from llmpod.loadtest.errors import Exit
from llmpod.loadtest.model.job_record import Job

# Nothing that happens later in a run cures these.
HOPELESS = frozenset({"submit_401", "submit_404", "dns", "connect", "tls", "bad_reply"})
HOPELESS_AFTER = 10
# So many jobs in a row that timed out while no worker was live or starting: the next ones will, too.
DESERTED_AFTER = 5


@dataclass(frozen=True, slots=True)
class Stop:
    reason: str
    exit_code: Exit


@dataclass(slots=True)
class Guards:
    """Takes every finished job; `check` returns a Stop once there is a reason.

    The cost is an estimate that grows while the run goes on: the worker time that /health showed so far (`worker_s`),
    or execution time where /health shows none, at the GPU's price.
    """

    max_cost_usd: float | None = None
    usd_per_s: float | None = None
    max_error_rate: float | None = None
    min_samples: int = 20
    worker_s: Callable[[], float] = lambda: 0.0
    alarm: Callable[[], str | None] = lambda: None  # said when no worker has been live or starting for long
    done: int = 0
    failed: int = 0
    hopeless: int = 0
    timed_out: int = 0  # in a row
    exec_s: float = 0.0
    _last: str = field(default="")

    @property
    def cost_usd(self) -> float | None:
        return None if self.usd_per_s is None else (self.worker_s() or self.exec_s) * self.usd_per_s

    def take(self, job: Job) -> None:
        if job.error_class == "client_cancelled":
            return
        self.done += 1
        self.timed_out = self.timed_out + 1 if job.error_class in ("client_timeout", "job_timed_out") else 0
        if job.exec_ms is not None:
            self.exec_s += job.exec_ms / 1000
        if job.ok:
            self.hopeless = 0
            return
        if job.role == "measured":
            self.failed += 1
        self.hopeless = self.hopeless + 1 if job.error_class in HOPELESS else 0
        self._last = f"{job.error_class}: {job.error}"

    def check(self) -> Stop | None:
        if self.hopeless >= HOPELESS_AFTER and self.hopeless == self.done:
            return Stop(f"the endpoint cannot be reached or will not take jobs ({self._last})", Exit.ERROR)
        alarm = self.alarm()
        if alarm is not None and self.timed_out >= DESERTED_AFTER:
            return Stop(f"{alarm}; {self.timed_out} jobs in a row timed out", Exit.ERROR)
        cost = self.cost_usd
        if self.max_cost_usd is not None and cost is not None and cost > self.max_cost_usd:
            return Stop(
                f"--max-cost ${self.max_cost_usd:g} is spent (an estimated ${cost:.4f} of worker time)", Exit.ABORTED
            )
        if self.max_error_rate is not None and self.done >= self.min_samples:
            rate = self.failed / self.done
            if rate > self.max_error_rate:
                return Stop(
                    f"error rate {rate:.1%} is above --max-error-rate {self.max_error_rate:.1%} ({self._last})",
                    Exit.ABORTED,
                )
        return None
