"""Values in a task's rules: numbers, paths, conditions, patterns, and expressions over a document's numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator

from llmpod.worker.profile.tasks.exact_json import CONTEXT
from llmpod.worker.profile.tasks.paths import MISSING, Path, Place


def _decimal(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(f"{value!r} is not a number")
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        raise ValueError(f"{value!r} is not a number") from None
    if not number.is_finite():
        raise ValueError(f"{value!r} is not finite")
    return number


def _scalar(value: object) -> Any:
    """A TOML value as documents hold it: numbers are Decimals."""
    if value is None or isinstance(value, str | bool):
        return value
    return _decimal(value)


def _one_value(value: object) -> Path:
    path = Path.parse(value)
    if path.several:
        raise ValueError(f"{path.text} names several values, and this needs one")
    return path


def _conditions(value: object) -> tuple[tuple[Path, Any], ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError("write the conditions as { path = value }")
    return tuple((_one_value(path), _scalar(wanted)) for path, wanted in value.items())


def _pattern(value: object) -> re.Pattern[str]:
    try:
        return re.compile(str(value))
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None


Number = Annotated[Decimal, BeforeValidator(_decimal)]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
PathText = Annotated[Path, PlainValidator(Path.parse)]
Conditions = Annotated[tuple[tuple[Path, Any], ...], PlainValidator(_conditions)]
Pattern = Annotated[re.Pattern[str], PlainValidator(_pattern)]


class NotANumberError(Exception):
    """A place that an expression needs is missing or holds no number."""

    def __init__(self, place: Place) -> None:
        super().__init__("is missing" if place.value is MISSING else "is not a number")
        self.place = place


@dataclass(frozen=True)
class Expression:
    """A number of a document: `path`, `sum(path)` or `count(path)`; or a number itself."""

    text: str
    path: Path | None = None
    function: str | None = None
    number: Decimal = Decimal(0)

    @classmethod
    def parse(cls, value: object) -> Expression:
        """Parse an expression.

        Raises:
            ValueError: it is none, or a path with `[*]` stands outside of a function.
        """
        text = str(value).strip()
        called = re.fullmatch(r"(sum|count)\((.*)\)", text)
        if called is not None:
            return cls(text, Path.parse(called[2].strip()), called[1])
        try:
            return cls(text, number=_decimal(value))
        except ValueError:
            path = Path.parse(text)
        if path.several:
            raise ValueError(f"{text} names several values: use sum({text}) or count({text})")
        return cls(text, path)

    def value(self, document: Any) -> Decimal:
        """Its value in a document; the sum of an empty list is 0.

        Raises:
            NotANumberError: with the first place that has no number.
        """
        if self.path is None:
            return self.number
        places = self.path.find(document)
        total = Decimal(0)
        for place in places:
            counted = self.function == "count" and place.value is not MISSING
            if not counted and not isinstance(place.value, Decimal):
                raise NotANumberError(place)
            total = CONTEXT.add(total, Decimal(1) if counted else place.value)
        return total


Term = Annotated[Expression, PlainValidator(Expression.parse)]
