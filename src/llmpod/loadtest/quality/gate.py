"""Gate: the lines that a release must meet, read from a file and judged on a quality report.

    career_guidance >= 75%                  # the pass rate of one intent
    answers >= 75%                          # that of all rows that expect an answer; `overall`: of all rows
    leaks == 0                              # answers to what should have been blocked
    exec.p95 < 3s                           # any latency that --slo knows
    rollback unless answers >= 70%          # what holds a running release: below it, go back

An unknown name ends the command before anything is sent: a line about a misspelt intent must never pass in silence. A
line about something that was not measured fails, for the same reason.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmpod.loadtest.analysis.latency import METRICS
from llmpod.loadtest.analysis.slo import OPERATORS, Slo
from llmpod.loadtest.analysis.slo import Verdict as LatencyVerdict
from llmpod.loadtest.analysis.slo import parse as parse_slo
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.intake import line
from llmpod.loadtest.quality.dataset import RESERVED, resolve
from llmpod.loadtest.units import show_share

MOST_BYTES = 1_000_000
_LINE = re.compile(r"(?P<rollback>rollback\s+unless\s+)?(?P<name>[\w.-]+)\s*(?P<operator>[<>]=?|==)\s*(?P<limit>\S+)")

Decision = Literal["proceed", "hold", "roll back"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A line of a gate. `limit` is a share, but a number for `leaks`; of a latency, `slo` is the objective."""

    text: str
    name: str
    operator: str
    limit: float
    rollback: bool = False
    slo: Slo | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A measured share with its 95 % interval; None where nothing was measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A condition and what was measured. `unsure`: the interval spans the limit, so that chance may have decided."""

    text: str
    rollback: bool
    shown: str
    passed: bool
    measured: bool = True
    unsure: str | None = None


def read(given: str, names: Collection[str]) -> tuple[Condition, ...]:
    """The conditions of a gate file; `names` are the intents that can be measured. Raises UsageError."""
    path = resolve(given, ".gate")
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--gate: cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--gate {path} is not UTF-8 text") from None
    if len(raw) > MOST_BYTES:
        raise UsageError(f"--gate {path} has more than {MOST_BYTES // 10**6} MB: that is no gate")
    conditions = []
    for number, row in enumerate(text.splitlines(), 1):
        words = row.partition("#")[0].strip()
        if words:
            try:
                conditions.append(parse(words, names))
            except UsageError as error:
                raise UsageError(f"--gate {path} line {number}: {error}") from None
    if not conditions:
        raise UsageError(f"--gate {path} has no condition")
    return tuple(conditions)


def parse(text: str, names: Collection[str]) -> Condition:
    """`career_guidance >= 75%`, `leaks == 0`, `rollback unless answers >= 70%`. Raises UsageError."""
    found = _LINE.fullmatch(text)
    if found is None:
        raise UsageError(f"'{line(text, 80)}': write it like career_guidance >= 75% or leaks == 0")
    name, compare, limit = found["name"], found["operator"], found["limit"]
    rollback = found["rollback"] is not None
    if name.partition(".")[0] in METRICS:
        if compare == "==":
            raise UsageError(f"{name} is a time: compare it with <, <=, > or >=")
        return Condition(text, name, compare, 0.0, rollback, parse_slo(f"{name}{compare}{limit}"))
    if name not in (*names, *RESERVED):
        known = ", ".join([*sorted(names), *RESERVED])
        raise UsageError(f"'{line(name, 60)}' is no intent of the data set, and no metric. There are {known}")
    if name == "leaks":
        if not limit.isdecimal():
            raise UsageError(f"'{line(text, 80)}': leaks are counted; write a whole number")
        return Condition(text, name, compare, float(limit[:9]), rollback)
    try:
        share = float(limit.removesuffix("%")) / (100 if limit.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"'{line(text, 80)}': {name} is a share; write it like 75% or 0.75")
    return Condition(text, name, compare, share, rollback)


def judge(
    conditions: Sequence[Condition],
    shares: Mapping[str, Share],
    leaks: int | None,
    latencies: Mapping[str, LatencyVerdict],
) -> tuple[Judged, ...]:
    """Each condition on what was measured. `shares`: by name; `latencies`: verdicts by the condition's text; `leaks`:
    None where nothing was judged that could have leaked."""

    def of(condition: Condition) -> Judged:
        text, rollback, compare = condition.text, condition.rollback, OPERATORS[condition.operator]
        found, share = latencies.get(text), shares.get(condition.name, Share(None))
        if condition.slo is not None and found is not None and found.value is not None:
            return Judged(text, rollback, found.shown, found.passed, unsure=found.unsure)
        if condition.name == "leaks" and leaks is not None:
            return Judged(text, rollback, str(leaks), compare(leaks, condition.limit))
        if condition.slo is None and share.value is not None:
            spans = share.low is not None and share.high is not None and share.low < condition.limit < share.high
            interval = f"95% interval {show_share(share.low)} to {show_share(share.high)} spans the limit"
            passed = compare(share.value, condition.limit)
            return Judged(text, rollback, show_share(share.value), passed, unsure=interval if spans else None)
        return Judged(text, rollback, "not measured", passed=False, measured=False)

    return tuple(map(of, conditions))


def decide(judged: Sequence[Judged]) -> Decision:
    """What the gate says about a release: a `rollback unless` line that was measured and fails outweighs all others."""
    if any(one.rollback and one.measured and not one.passed for one in judged):
        return "roll back"
    return "proceed" if all(one.passed for one in judged) else "hold"
