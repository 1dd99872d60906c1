"""Service-level objectives: read from the command line, judged on a phase.

Unknown names are errors when they are read: an objective on a misspelt metric must never pass in silence. An objective
on something that was not measured fails, for the same reason.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmpod.loadtest.analysis.latency import METRICS, Row
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.options import PRESETS
from llmpod.loadtest.stats import share_is_clear
from llmpod.loadtest.units import show_ms, show_rate, show_share

SHARES = ("error_rate", "success_rate", "goodput", "blocked_rate", "valid_rate", "truncated_rate", "drift")
RATES = ("throughput", "achieved_rate", "tokens_per_s")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_EXPRESSION = re.compile(
    r"^\s*([a-z_]+)(?:\[([\w.-]{1,100})\])?(?:\.(p\d+(?:\.\d+)?|mean|max|min))?"
    r"\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s*(ms|s|m|%|/s|/min)?\s*$"
)


@dataclass(frozen=True, slots=True)
class Slo:
    """`limit` is in ms for latencies, a share (0..1) for rates of errors, per second for throughput."""

    text: str
    name: str
    statistic: str | None
    operator: str
    limit: float
    intent: str | None = None

    @property
    def percentile(self) -> float | None:
        return float(self.statistic[1:]) if self.statistic and self.statistic.startswith("p") else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`unsure`: the interval of the percentile spans the limit, or there are too few samples for an interval."""

    slo: Slo
    value: float | None
    passed: bool
    unsure: str | None

    @property
    def shown(self) -> str:
        if self.value is None:
            return "not measured"
        if self.slo.name in METRICS:
            return show_ms(self.value)
        return show_share(self.value) if self.slo.name in SHARES else show_rate(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What of a phase an objective can be about. None: it was not measured."""

    rows: dict[str, Row]
    counted: int
    failed: int = 0
    throughput_per_s: float | None = None
    achieved_per_s: float | None = None
    tokens_per_s: float | None = None
    goodput_share: float | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    validated: dict[str, tuple[int, int]] = field(default_factory=dict)
    """intent -> (valid, judged by the worker); "" is all of them"""
    drift: float | None = None
    """by what share the median execution of the last quarter differs from the first's"""

    def value(self, metric: str, p: float) -> float | None:
        row = self.rows.get(metric)
        return row.value(p) if row else None


def parse(text: str) -> Slo:
    """`total.p95<8s`, `exec.p50<=3000ms`, `error_rate<1%`, `throughput>=0.5/s`. A bare number on a latency is ms."""
    match = _EXPRESSION.match(text)
    if not match:
        raise UsageError(f"--slo '{text}': write it like total.p95<8s, error_rate<1% or throughput>=0.5/s")
    name, intent, statistic, compare, number, unit = match.groups()
    value = float(number)
    if intent is not None and name != "valid_rate":
        raise UsageError(
            f"--slo '{text}': only valid_rate is measured per intent, like valid_rate[resume_guidance]>=75%"
        )
    if name in METRICS:
        if statistic is None:
            raise UsageError(f"--slo '{text}': {name} of what? Write {name}.p95, {name}.p50, {name}.mean or {name}.max")
        if statistic.startswith("p") and not 0 < float(statistic[1:]) < 100:
            raise UsageError(f"--slo '{text}': a percentile lies between 0 and 100")
        if unit not in (None, "ms", "s", "m"):
            raise UsageError(f"--slo '{text}': {name} is a time; its unit is ms, s or m")
        return Slo(text, name, statistic, compare, value * {"ms": 1, "s": 1000, "m": 60_000, None: 1}[unit])
    if statistic is not None and name in (*SHARES, *RATES):
        raise UsageError(f"--slo '{text}': {name} has no percentiles; write {name}{compare}{number}{unit or ''}")
    if name in SHARES:
        if unit not in (None, "%"):
            raise UsageError(f"--slo '{text}': {name} is a share; write it like 1% or 0.01")
        limit = value / 100 if unit == "%" else value
        if limit > 1:
            raise UsageError(f"--slo '{text}': a share above 100 %; did you mean {number}%?")
        return Slo(text, name, None, compare, limit, intent)
    if name in RATES:
        if unit not in (None, "/s", "/min"):
            raise UsageError(f"--slo '{text}': {name} is a rate; its unit is /s or /min")
        return Slo(text, name, None, compare, value / 60 if unit == "/min" else value)
    known = ", ".join([*(f"{metric}.pNN" for metric in METRICS), *SHARES, *RATES])
    raise UsageError(f"--slo '{text}': no metric is called '{name}'. There are {known}")


def preset(name: str) -> tuple[Slo, ...]:
    if name not in PRESETS:
        raise UsageError(f"--slo-preset '{name}': there are {', '.join(PRESETS)}")
    return tuple(parse(text) for text in PRESETS[name])


def judge(slos: Sequence[Slo], phase: Figures) -> tuple[Verdict, ...]:
    measured = [(slo, *_measure(slo, phase)) for slo in slos]
    return tuple(
        Verdict(slo, value, value is not None and OPERATORS[slo.operator](value, slo.limit), unsure)
        for slo, value, unsure in measured
    )


def _measure(slo: Slo, phase: Figures) -> tuple[float | None, str | None]:
    if slo.name in METRICS:
        row = phase.rows.get(slo.name)
        if row is None:
            # Nothing succeeded: with failures counted as infinitely slow, so is every percentile.
            return (math.inf, None) if phase.failed and slo.name == "total" else (None, None)
        return _latency(slo, row)
    if phase.counted == 0:
        return None, None
    valid, judged = phase.validated.get(slo.intent or "", (0, 0))
    good = round((phase.goodput_share or 0.0) * phase.counted)
    shares = {
        "error_rate": (phase.failed, phase.counted),
        "success_rate": (phase.counted - phase.failed, phase.counted),
        "blocked_rate": (phase.outcomes.get("blocked", 0), phase.counted),
        "valid_rate": (valid, judged),
        "truncated_rate": (phase.warnings.get("truncated", 0), phase.counted),
        "goodput": (good, phase.counted if phase.goodput_share is not None else 0),
    }
    if slo.name in shares:
        hits, n = shares[slo.name]
        return (hits / n, _share(hits, n, slo.limit)) if n else (None, None)
    values = {
        "drift": phase.drift,
        "throughput": phase.throughput_per_s,
        "achieved_rate": phase.achieved_per_s,
        "tokens_per_s": phase.tokens_per_s,
    }
    return values[slo.name], None


def _share(hits: int, n: int, limit: float) -> str | None:
    clear = share_is_clear(hits, n, limit)
    return None if clear else f"n={n}: a share of {show_share(limit)} could have shown the same by chance"


def _latency(slo: Slo, row: Row) -> tuple[float | None, str | None]:
    if slo.percentile is None:
        return {"mean": row.mean_ms, "max": row.max_ms, "min": row.min_ms}[slo.statistic or "mean"], None
    found = row.at(slo.percentile)
    if found is None:
        return None, None
    value = row.adjusted[f"p{slo.percentile:g}"] if row.adjusted is not None else found.value
    if found.low is None or found.high is None:
        return value, f"{found.size}, need {found.needed_n} to be sure"
    if found.low < slo.limit < found.high:
        return value, f"95% interval {show_ms(found.low)} to {show_ms(found.high)} spans the limit"
    return value, None
