"""Answer checks: text -> issues. Pure functions; a profile's file holds their parameters.

Words are letters and digits with apostrophes and hyphens inside. Terms are found as whole words, in any case.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BULLET = re.compile(r"^\s*(?:[-*•–+]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_NUMBER = r"(-?\d+(?:[.,]\d+)?)"


class Check(BaseModel, ABC):
    """One check of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def issues(self, text: str) -> list[str]:
        """What is wrong with an answer; nothing: an empty list."""


class Words(Check):
    """Number of words."""

    kind: Literal["words"]
    min: int = Field(0, ge=0)
    max: int | None = Field(None, ge=1)

    def issues(self, text: str) -> list[str]:
        return _bounded(len(words(text)), self.min, self.max, "words")


class UniqueRatio(Check):
    """Distinct words / words of an answer of more than `over` words: a low ratio is an answer that repeats itself."""

    kind: Literal["unique_ratio"]
    min: float = Field(ge=0, le=1)
    over: int = Field(20, ge=0)

    def issues(self, text: str) -> list[str]:
        found = words(text)
        repeats = len(found) > self.over and len(set(found)) / len(found) < self.min
        return ["repeats itself"] if repeats else []


class Mentions(Check):
    """At least so many of the terms occur."""

    kind: Literal["mentions"]
    any: tuple[str, ...] = Field(min_length=1)
    at_least: int = Field(1, ge=1)

    def issues(self, text: str) -> list[str]:
        found = sum(mentions(text, term) for term in self.any)
        if found >= self.at_least:
            return []
        if self.at_least == 1:
            return ["mentions none of the expected terms"]
        return [f"mentions {found} of the expected terms, at least {self.at_least} expected"]


class Avoids(Check):
    """None of the phrases occurs."""

    kind: Literal["avoids"]
    any: tuple[str, ...] = Field(min_length=1)

    def issues(self, text: str) -> list[str]:
        found = next((term for term in self.any if mentions(text, term)), None)
        return [f"holds {found!r}"] if found is not None else []


class Bullets(Check):
    """Lines that begin with a bullet or a number."""

    kind: Literal["bullets"]
    min: int = Field(1, ge=0)
    max: int | None = Field(None, ge=1)

    def issues(self, text: str) -> list[str]:
        return _bounded(len(_BULLET.findall(text)), self.min, self.max, "bullets")


class Sections(Check):
    """Named parts: `all` of the terms and one of `any` occur, as a heading or in the text."""

    kind: Literal["sections"]
    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()

    def issues(self, text: str) -> list[str]:
        missing = [term for term in self.all if not mentions(text, term)]
        issues = [f"has no section {', '.join(missing)}"] if missing else []
        if self.any and not any(mentions(text, term) for term in self.any):
            issues.append(f"has none of the sections {', '.join(self.any)}")
        return issues


class Items(Check):
    """Entries of a list: lines with bullets, or what commas and semicolons separate."""

    kind: Literal["items"]
    min: int = Field(1, ge=0)
    max: int | None = Field(None, ge=1)

    def issues(self, text: str) -> list[str]:
        bullets = len(_BULLET.findall(text))
        return _bounded(max(bullets, len(_listed(text))), self.min, self.max, "items")


class Number(Check):
    """A number behind a label (`Score: 85`, `score 85/100`, `85 % score`) within bounds."""

    kind: Literal["number"]
    label: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None

    def issues(self, text: str) -> list[str]:
        label = re.escape(self.label)
        behind = re.compile(rf"(?<!\w){label}(?!\w)[\s:=*_]*(?:is\s+|of\s+)?[\s*_]*{_NUMBER}", re.IGNORECASE)
        before = re.compile(rf"(?<![\w.,-]){_NUMBER}\s*%?\s*{label}(?!\w)", re.IGNORECASE)
        found = behind.search(text) or before.search(text)
        if found is None:
            return [f"has no number for {self.label}"]
        number = float(found[1].replace(",", "."))
        low, high = self.min, self.max
        if (low is not None and number < low) or (high is not None and number > high):
            return [f"{self.label} is {found[1]}, outside {_range(low, high)}"]
        return []


class AnyOf(Check):
    """One of several checks is enough."""

    kind: Literal["any_of"]
    checks: tuple[AnyCheck, ...] = Field(min_length=2)

    def issues(self, text: str) -> list[str]:
        found = [check.issues(text) for check in self.checks]
        return [] if any(not issues for issues in found) else [" and ".join(issues[0] for issues in found)]


AnyCheck = Annotated[
    Words | UniqueRatio | Mentions | Avoids | Bullets | Sections | Items | Number | AnyOf, Field(discriminator="kind")
]
AnyOf.model_rebuild()


def validate(text: str, finish_reason: str | None, checks: tuple[Check, ...]) -> list[str]:
    """Issues of an answer; an empty list means valid. An answer cut by max_tokens is never valid."""
    issues = ["cut off by max_tokens"] if finish_reason == "length" else []
    return issues + [issue for check in checks for issue in check.issues(text)]


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def mentions(text: str, term: str) -> bool:
    """Whether a term occurs as whole words; any white space matches a space in it."""
    wanted = re.escape(term).replace(r"\ ", r"\s+")
    return re.search(rf"(?<!\w){wanted}(?!\w)", text, re.IGNORECASE) is not None


def _listed(text: str) -> list[str]:
    """Entries between commas and semicolons; what stands before a colon is a heading."""
    entries = []
    for line in text.splitlines():
        parts = re.split(r"[,;]", line.rsplit(":", 1)[-1])
        entries += [part for part in parts if part.strip(" .")] if len(parts) > 1 else []
    return entries


def _bounded(count: int, low: int, high: int | None, what: str) -> list[str]:
    if count < low:
        return [f"{count} {what}, at least {low} expected"]
    if high is not None and count > high:
        return [f"{count} {what}, at most {high} expected"]
    return []


def _range(low: float | None, high: float | None) -> str:
    return f"{'…' if low is None else f'{low:g}'} to {'…' if high is None else f'{high:g}'}"
