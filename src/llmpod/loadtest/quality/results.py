"""Quality report: pass rates per intent with intervals, leaks, examples, and the gate's decision."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmpod.loadtest.errors import DirectoryError, Exit
from llmpod.loadtest.intake import line
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.quality.dataset import ANSWERS, OVERALL, Row
from llmpod.loadtest.quality.gate import Decision, Judged, Share
from llmpod.loadtest.quality.verdict import judge, text_or_json
from llmpod.loadtest.stats import two_shares, wilson

FORMAT = 1
FILE, VERDICTS = "quality.json", "quality.jsonl"
MOST_EXAMPLES = 5
MOST_TRANSPORT = 0.05
"""The share of jobs without an answer beyond which the others say too little."""


@dataclass(frozen=True, slots=True)
class Example:
    """A failed answer; `text` is its beginning."""

    id: str
    reasons: tuple[str, ...]
    text: str


@dataclass(slots=True)
class Group:
    """The rows of one intent. `passed`, `failed` and `transport` count jobs; `rows` those that had an answer.

    `share` is the mean of the rows' pass rates: a row counts once, however often it was repeated.
    """

    name: str
    passed: int = 0
    failed: int = 0
    transport: int = 0
    leaks: int = 0
    guarded: int = 0  # judged jobs that should have been blocked
    cut: int = 0
    rows: int = 0
    share: float | None = None
    low: float | None = None
    high: float | None = None
    examples: list[Example] = field(default_factory=list)

    @property
    def ended(self) -> int:
        return self.passed + self.failed + self.transport

    @property
    def as_share(self) -> Share:
        return Share(self.share, self.low, self.high)


@dataclass(slots=True)
class Results:
    """All verdicts of a run, as they come in."""

    rows: Sequence[Row]
    journal: run_files.LineFile
    _hits: dict[str, list[int]] = field(default_factory=dict)  # id -> passed, judged
    _groups: dict[str, Group] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)

    def take(self, job: Job, output: Any) -> None:
        """Judges a job that has ended. Its row is that of its index, round after round."""
        if job.outcome is None or job.index in self._taken:
            return
        self._taken.add(job.index)
        row = self.rows[job.index % len(self.rows)]
        verdict = judge(row.expect, job, output)
        for name in _groups_of(row):
            group = self._group(name)
            setattr(group, verdict.kind, getattr(group, verdict.kind) + 1)
            group.leaks += verdict.leak
            group.guarded += row.expect.blocked and verdict.kind != "transport"
            group.cut += verdict.cut
        if verdict.kind != "transport":
            hits = self._hits.setdefault(row.id, [0, 0])
            hits[0] += verdict.kind == "passed"
            hits[1] += 1
        text = line(text_or_json(output), 200) if verdict.kind == "failed" else ""
        examples = self._group(row.group).examples
        told = len(examples) == MOST_EXAMPLES or row.id in [example.id for example in examples]
        if verdict.kind == "failed" and not told:
            examples.append(Example(row.id, verdict.reasons, text))
        written = {"id": row.id, "round": job.index // len(self.rows) + 1, "intent": row.group, "job_id": job.job_id}
        self.journal.append(
            {**written, "verdict": verdict.kind, "reasons": verdict.reasons, "leak": verdict.leak, "text": text}
        )

    def groups(self) -> list[Group]:
        """Every intent of the data set, then `answers` and `overall`, with their shares."""
        members: dict[str, list[list[int]]] = {}
        for row in self.rows:
            for name in _groups_of(row):
                members.setdefault(name, [])
                if row.id in self._hits:
                    members[name].append(self._hits[row.id])
        for name, hits in members.items():
            _measure(self._group(name), hits)
        return [
            self._group(name) for name in sorted(members, key=lambda name: (name == OVERALL, name == ANSWERS, name))
        ]

    def _group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group(name))


def _groups_of(row: Row) -> Iterator[str]:
    yield row.group
    if not row.expect.blocked:
        yield ANSWERS
    yield OVERALL


def _measure(group: Group, hits: Sequence[Sequence[int]]) -> None:
    group.rows = len(hits)
    if hits:
        group.share = sum(passed / judged for passed, judged in hits) / len(hits)
        group.low, group.high = wilson(group.share, len(hits))


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What quality.json holds. `stopped`: why the run ended early, if it did."""

    meta: dict[str, Any]
    groups: list[Group]
    planned: int
    gate: tuple[Judged, ...]
    decision: Decision | None
    stopped: str | None
    notes: list[str]
    exit_code: Exit

    @property
    def overall(self) -> Group:
        return self.groups[-1]


def exit_code(overall: Group, decision: Decision | None, stopped: Exit | None) -> Exit:
    """Early ends first; then too few answers to judge; then the gate."""
    if stopped is not None:
        return stopped
    if not overall.rows or overall.transport > MOST_TRANSPORT * overall.ended:
        return Exit.INVALID
    return Exit.PASS if decision in (None, "proceed") else Exit.SLO_FAILED


def to_json(report: QualityReport) -> dict[str, Any]:
    """The report as quality.json."""
    return {"format": FORMAT, **asdict(report), "exit_code": int(report.exit_code)}


def is_quality(directory: Path) -> bool:
    """Whether a directory is that of a quality run."""
    return (directory / FILE).is_file()


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


def read_groups(directory: Path) -> list[Group]:
    """The groups of a recorded quality run, overall last. Raises DirectoryError."""
    path = directory / FILE
    value = run_files.read_json(path)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {line(value['format'], 40)}")
        groups = [Group(**{**group, "examples": []}) for group in value["groups"]]
        for group in groups:
            counts = (group.passed, group.failed, group.transport, group.rows)
            if not isinstance(group.name, str) or not all(
                type(number) is int and 0 <= number < 10**9 for number in counts
            ):
                raise TypeError("a group's counts are no numbers")
            if group.share is not None and not 0 <= group.share <= 1:
                raise ValueError("a share is none")
    except (KeyError, TypeError, ValueError) as error:
        raise DirectoryError(f"{path} is no report of this version ({line(error, 100)})") from None
    return groups
