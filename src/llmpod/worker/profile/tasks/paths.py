"""Paths into a JSON value: dotted names, `[0]` for an element and `[*]` for every element of a list."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final


class Missing(enum.Enum):
    """The type of MISSING."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""The value of a place that is not there."""
Step = str | int | None
"""A key, an index, or None for every element."""

_STEP = re.compile(r"(?P<dot>\.)?(?P<name>[^\W\d][\w-]*)|\[(?P<index>\*|\d{1,6})\]")


@dataclass(frozen=True)
class Place:
    """One value that a path leads to; its steps hold None only where it is MISSING."""

    steps: tuple[Step, ...]
    value: Any

    @property
    def text(self) -> str:
        """The place as a path without `[*]`."""
        return shown(self.steps)

    def enter(self, step: Step) -> Iterator[Place]:
        """The places one step further. What is missing has no inside and stays as it is."""
        value, inner = self.value, MISSING
        if value is MISSING:
            yield self
            return
        if step is None and isinstance(value, list):
            yield from (Place((*self.steps, index), item) for index, item in enumerate(value))
            return
        if isinstance(step, str) and isinstance(value, dict):
            inner = value.get(step, MISSING)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            inner = value[step]
        yield Place((*self.steps, step), inner)


@dataclass(frozen=True)
class Path:
    """A parsed path."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: object) -> Path:
        """Parse `a.b[*].c`.

        Raises:
            ValueError: it is not a path.
        """
        steps: list[Step] = []
        position = 0
        while isinstance(text, str) and position < len(text):
            found = _STEP.match(text, position)
            if found is None or (found["name"] is not None and bool(found["dot"]) != bool(steps)):
                break
            steps.append(found["name"] or (None if found["index"] == "*" else int(found["index"])))
            position = found.end()
        if not steps or position != len(str(text)):
            raise ValueError(f"{text!r} is not a path: write it like total, party.name or items[*].amount")
        return cls(tuple(steps))

    @property
    def text(self) -> str:
        """The path as it is written."""
        return shown(self.steps)

    @property
    def several(self) -> bool:
        """Whether it can lead to more than one value."""
        return None in self.steps

    def find(self, document: Any) -> list[Place]:
        """Every place that the path leads to; a place that is not there has the value MISSING."""
        places = [Place((), document)]
        for step in self.steps:
            places = [inner for place in places for inner in place.enter(step)]
        return places


def shown(steps: tuple[Step, ...]) -> str:
    """Steps as a path: ("items", 0, "amount") -> items[0].amount."""
    text = ""
    for step in steps:
        if isinstance(step, str):
            text += f".{step}" if text else step
        else:
            text += f"[{'*' if step is None else step}]"
    return text


def replaced(document: Any, steps: tuple[Step, ...], value: Any) -> Any:
    """A copy of `document` with another value at an existing place; what is not on the way is shared."""
    if not steps:
        return value
    copy = document.copy()
    copy[steps[0]] = replaced(document[steps[0]], steps[1:], value)
    return copy
