"""Report of a phase as data: figures, validity issues, verdicts."""

from dataclasses import dataclass, field
from typing import Any

from llmpod.loadtest.analysis.cost import Cost
from llmpod.loadtest.analysis.latency import Row, Share, Spread
from llmpod.loadtest.analysis.slo import Figures, Slo, Verdict
from llmpod.loadtest.analysis.stretches import Bin, Little, Silence, Slice
from llmpod.loadtest.analysis.timeline import HealthReport, Scaler
from llmpod.loadtest.analysis.workers import StartClass, Stratum, WorkerRow
from llmpod.loadtest.model.plan import Phase


@dataclass(frozen=True, slots=True)
class ValidityIssue:
    """`fatal`: no verdict is given on these numbers (exit code 5)."""

    text: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class View:
    """Options of the analysis; none of them changes what was measured."""

    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    slos: tuple[Slo, ...] = ()
    goodput: tuple[tuple[str, float], ...] = ()  # (metric, ms): a good request meets all of them
    scaler: Scaler = field(default_factory=Scaler)
    usd_per_hour: float | None = None
    slice_s: float | None = None
    allow_worker_change: bool = False

    @property
    def all_percentiles(self) -> tuple[float, ...]:
        """Those to show, and those that an objective is about."""
        asked = {slo.percentile for slo in self.slos if slo.percentile is not None}
        return tuple(sorted({*self.percentiles, *asked}))


@dataclass(frozen=True, slots=True)
class Failures:
    """`code`: the worker's own name for what went wrong, by which failures are grouped where there is one."""

    error_class: str
    meaning: str
    n: int
    example: str
    job_id: str | None
    code: str | None = None

    @property
    def name(self) -> str:
        return self.error_class if self.code in (None, self.error_class) else f"{self.error_class} {self.code}"


@dataclass(frozen=True, slots=True)
class Prompts:
    """The jobs of one named kind of prompt of a mix."""

    name: str
    n: int
    failed: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport(Figures):
    phase: Phase
    mode: str
    ok: int
    excluded: dict[str, int]
    window_s: float
    window_start_ms: float
    requested_per_s: float | None
    throughput_error: float | None  # relative standard error, from batches of the window
    output_tokens: int
    tokens_estimated: int
    finish_reasons: dict[str, int]
    spreads: tuple[Spread, ...]
    shares: tuple[Share, ...]
    failures: tuple[Failures, ...]
    prompts: tuple[Prompts, ...]
    classes: tuple[StartClass, ...]
    without_cold: Row | None
    workers: tuple[WorkerRow, ...]
    jain: float | None
    strata: tuple[Stratum, ...]
    little: Little | None
    slices: tuple[Slice, ...]
    over_time: tuple[Bin, ...]
    silences: tuple[Silence, ...]
    health: HealthReport | None
    cost: Cost | None
    goodput_per_s: float | None
    client: dict[str, Any]
    refusals: dict[str, int]  # why submits were refused before one was taken: "429" -> 2
    retry_wait_s: float
    poll_overshoot_ms: float | None  # the mean that polling would have added to the total, had it not been corrected
    doubts: tuple[ValidityIssue, ...]
    verdicts: tuple[Verdict, ...]
    why: str

    @property
    def valid(self) -> bool:
        return not any(doubt.fatal for doubt in self.doubts)
