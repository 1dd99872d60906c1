"""Rules on a JSON answer that a grammar cannot express, as a profile's [[tasks]] list them.

Every rule is a pure function: a document in, its issues out. Rules read numbers as Decimals and change nothing, unless
they are told to (`change`, `clamp`, `else`); a change is an issue of severity "changed". What is absent or null is the
schema's concern: only `equal` needs its values.
"""

from __future__ import annotations

import datetime
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmpod.worker.profile.tasks.exact_json import CONTEXT, plain
from llmpod.worker.profile.tasks.paths import MISSING, Path, Place, Step, replaced
from llmpod.worker.profile.tasks.rule_values import Conditions, NotANumberError, Number, PathText, Pattern, Scalar, Term

MAX_PATTERN_CHARS = 1000
"""Longest value that a pattern is matched with: the time that a pattern takes may grow faster than its text."""
MAX_SHOWN_CHARS = 200
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

Severity = Literal["error", "warning", "changed"]


@dataclass(frozen=True)
class Issue:
    """A finding of one rule. `expected` of a change is the new value, `actual` the one before."""

    rule: str
    path: str
    message: str
    severity: Severity = "error"
    expected: Any = None
    actual: Any = None
    steps: tuple[Step, ...] = ()  # of the value, where it is changed

    def as_dict(self) -> dict[str, Any]:
        """The fields for the reply's `validation.issues`."""
        return {
            "rule": self.rule,
            "path": self.path,
            "severity": self.severity,
            "message": self.message,
            "expected": shown(self.expected),
            "actual": shown(self.actual),
        }


def shown(value: Any) -> Any:
    """A value as an issue quotes it: texts and lists only so far."""
    if isinstance(value, str):
        return value[:MAX_SHOWN_CHARS]
    if isinstance(value, dict | list):
        return str(plain(value))[:MAX_SHOWN_CHARS]
    return plain(value)


def apply(rules: Iterable[Rule], document: Any) -> tuple[Any, list[Issue]]:
    """The document after all rules, in their order, and their issues. The given document is not modified."""
    issues: list[Issue] = []
    for rule in rules:
        found = list(rule.issues(document))
        for issue in found:
            if issue.severity == "changed":
                document = replaced(document, issue.steps, issue.expected)
        issues += found
    return document, issues


class Rule(BaseModel, ABC):
    """A row of a task's `rules`; `rule` is its kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    rule: str

    @abstractmethod
    def issues(self, document: Any) -> Iterator[Issue]:
        """The rule's issues with a document."""

    @property
    @abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """Every path that the rule reads."""


class Equal(Rule):
    """Two numbers are equal, give or take `tolerance`."""

    rule: Literal["equal"]
    left: Term
    right: Term
    tolerance: Annotated[Number, Field(ge=0)] = Decimal(0)

    def issues(self, document: Any) -> Iterator[Issue]:
        try:
            left, right = self.left.value(document), self.right.value(document)
        except NotANumberError as error:
            place = error.place
            actual = None if place.value is MISSING else place.value
            yield Issue("equal", place.text, f"{place.text} {error}", "error", "a number", actual)
            return
        if abs(CONTEXT.subtract(left, right)) > self.tolerance:
            within = f" within {self.tolerance}" if self.tolerance else ""
            message = f"{self.left.text} is not equal to {self.right.text}{within}"
            yield Issue("equal", self.left.text, message, "error", right, left)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(term.path for term in (self.left, self.right) if term.path is not None)


class _OnPath(Rule):
    """A rule on each value that is there."""

    path: PathText

    def issues(self, document: Any) -> Iterator[Issue]:
        for place in self.path.find(document):
            if place.value is not MISSING and place.value is not None:
                yield from self.judge(place)

    @abstractmethod
    def judge(self, place: Place) -> Iterator[Issue]:
        """The issues of one value."""

    def found(self, place: Place, message: str, expected: Any, severity: Severity = "error") -> Issue:
        """An issue with the value at a place."""
        return Issue(self.rule, place.text, message, severity, expected, place.value, place.steps)

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)


class _When(_OnPath):
    """A rule that holds where every condition of `when` is met; with `change`, the value is set."""

    when: Conditions
    change: bool = False

    def issues(self, document: Any) -> Iterator[Issue]:
        if all(_same(path.find(document)[0].value, wanted) for path, wanted in self.when):
            yield from super().issues(document)

    def wanted(self, place: Place, value: Any) -> Iterator[Issue]:
        """An issue unless the place holds `value`."""
        if not _same(place.value, value):
            conditions = " and ".join(f"{path.text} is {shown(wanted)}" for path, wanted in self.when)
            message = f"{place.text} must be {shown(value)} where {conditions}".replace("None", "null")
            yield self.found(place, message, value, "changed" if self.change else "error")

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *(path for path, _ in self.when))


class NullWhen(_When):
    """A value is null (or absent) under a condition."""

    rule: Literal["null_when"]

    def judge(self, place: Place) -> Iterator[Issue]:
        yield from self.wanted(place, None)


class ZeroWhen(_When):
    """A number is 0 under a condition."""

    rule: Literal["zero_when"]

    def judge(self, place: Place) -> Iterator[Issue]:
        yield from self.wanted(place, Decimal(0))


class Range(_OnPath):
    """A number lies between `min` and `max`; with `clamp`, one outside is set to the nearer of them."""

    rule: Literal["range"]
    min: Number | None = None
    max: Number | None = None
    clamp: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("range needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        return self

    def judge(self, place: Place) -> Iterator[Issue]:
        value = place.value
        if not isinstance(value, Decimal):
            yield self.found(place, f"{place.text} is not a number", "a number")
        elif self.min is not None and value < self.min:
            yield self._outside(place, f"{place.text} is below {self.min}", self.min)
        elif self.max is not None and value > self.max:
            yield self._outside(place, f"{place.text} is above {self.max}", self.max)

    def _outside(self, place: Place, message: str, bound: Decimal) -> Issue:
        return self.found(place, message, bound, "changed" if self.clamp else "error")


class OneOf(_OnPath):
    """A value is one of `values`; any other becomes `else`, where that is given."""

    rule: Literal["one_of"]
    values: Annotated[tuple[Scalar, ...], Field(min_length=1)]
    otherwise: Scalar = Field(MISSING, alias="else", validate_default=False)

    def judge(self, place: Place) -> Iterator[Issue]:
        if any(_same(place.value, one) for one in self.values):
            return
        listed = [shown(one) for one in self.values]
        message = f"{place.text} is not one of {', '.join(map(str, listed))}"
        if self.otherwise is MISSING:
            yield self.found(place, message, listed)
        else:
            yield self.found(place, message, self.otherwise, "changed")


class _OfText(_OnPath):
    """A rule on texts."""

    def judge(self, place: Place) -> Iterator[Issue]:
        if isinstance(place.value, str):
            yield from self.read(place, place.value)
        else:
            yield self.found(place, f"{place.text} is not text", "text")

    @abstractmethod
    def read(self, place: Place, text: str) -> Iterator[Issue]:
        """The issues of a text."""


class Matches(_OfText):
    """A text matches a regular expression from its first to its last character."""

    rule: Literal["pattern"]
    pattern: Pattern

    def read(self, place: Place, text: str) -> Iterator[Issue]:
        if len(text) > MAX_PATTERN_CHARS:
            yield self.found(place, f"{place.text} has more than {MAX_PATTERN_CHARS} characters", self.pattern.pattern)
        elif self.pattern.fullmatch(text) is None:
            yield self.found(place, f"{place.text} does not match the pattern", self.pattern.pattern)


class PrefixWarning(_OfText):
    """A warning of texts that begin in a certain way, which leaves the answer valid."""

    rule: Literal["prefix_warning"]
    prefixes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]

    def read(self, place: Place, text: str) -> Iterator[Issue]:
        prefix = next((one for one in self.prefixes if text.casefold().startswith(one.casefold())), None)
        if prefix is not None:
            yield self.found(place, f"{place.text} begins with {prefix}", None, "warning")


class Date(_OfText):
    """A text is a day of the calendar, as 2026-02-28."""

    rule: Literal["date"]

    def read(self, place: Place, text: str) -> Iterator[Issue]:
        try:
            valid = _DAY.fullmatch(text) is not None and bool(datetime.date.fromisoformat(text))
        except ValueError:
            valid = False
        if not valid:
            yield self.found(place, f"{place.text} is not a date", "YYYY-MM-DD")


AnyRule = Annotated[
    Equal | NullWhen | ZeroWhen | Range | OneOf | Matches | PrefixWarning | Date, Field(discriminator="rule")
]


def _same(one: Any, other: Any) -> bool:
    """Equal and of one kind: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one is not MISSING and bool(one == other)
