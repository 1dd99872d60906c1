"""Data set of the quality command: JSON lines of inputs, each with what is expected of the answer.

    {"id": "resume-1", "input": {"prompt": "Write a resume summary for a nurse"},
     "expect": {"intent": "resume_guidance", "valid": true, "contains": "nurse"}}

A line that is not such a row ends the command before anything is sent, with the line's number.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.intake import line, too_deep
from llmpod.protocol import RUN_LIMIT_BYTES

SHIPPED = Path(__file__).with_name("shipped")
MOST_ROWS = 100_000
NO_INTENT = "no_intent"
"""The group of rows that expect no intent."""
OVERALL, ANSWERS = "overall", "answers"
"""The groups of all rows, and of those that expect an answer: blocked rows are easy, and would lift the share."""
RESERVED = (ANSWERS, OVERALL, "transport", "leaks")
"""Names of a gate that no intent can have."""
_ROW_KEYS = frozenset({"id", "input", "expect"})


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema, checked by the jsonschema package, which only data sets that have some need. Its references lie
    within itself: nothing is fetched."""

    _validator: Any = field(repr=False)

    @classmethod
    def of(cls, schema: Any) -> Self:
        """Raises ValueError: it is no JSON schema. Raises UsageError: jsonschema is not installed."""
        try:
            from jsonschema import SchemaError, validators
            from referencing import Registry
        except ModuleNotFoundError:
            raise UsageError("json_schema needs the jsonschema package: pip install 'llmpod[loadtest]'") from None
        if not isinstance(schema, dict):
            raise ValueError("expect.json_schema must be an object")
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"expect.json_schema is no JSON schema: {error.message}") from None
        return cls(kind(schema, registry=Registry()))

    def problem(self, value: Any) -> str | None:
        """The first thing that is wrong with a value, or None."""
        from referencing.exceptions import Unresolvable

        try:
            error = next(self._validator.iter_errors(value), None)
        except (Unresolvable, RecursionError) as unresolved:
            return f"the schema cannot be applied: {type(unresolved).__name__}"
        if error is None:
            return None
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
        return f"{where.lstrip('.') or 'the answer'} breaks the schema's {error.validator}"


@dataclass(frozen=True, slots=True)
class Expect:
    """What an answer must be like; None and () expect nothing.

    `contains` and `avoids` are texts that all must, and none may, stand in the answer, in any case.
    """

    blocked: bool = False
    intent: str | None = None
    valid: bool | None = None
    json_schema: Schema | None = None
    contains: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    id: str
    input: dict[str, Any]
    expect: Expect

    @property
    def group(self) -> str:
        """The intent under which the report counts the row."""
        return self.expect.intent or NO_INTENT


def resolve(given: str, suffix: str) -> Path:
    """The path of a data set or gate: a shipped one by its name, any other by its path."""
    shipped = SHIPPED / f"{given}{suffix}"
    return shipped if given.isidentifier() and shipped.is_file() and not Path(given).exists() else Path(given)


def read(given: str) -> list[Row]:
    """The rows of a data set. Raises UsageError, which names the file and the line."""
    path = resolve(given, ".jsonl")
    rows: dict[str, Row] = {}
    try:
        with path.open("rb") as file:
            for number, text in _lines(file, path):
                row = _row(text, path, number)
                if row.id in rows:
                    _refuse(path, number, f"there is a row with the id {line(row.id, 60)!r} before")
                if len(rows) == MOST_ROWS:
                    _refuse(path, number, f"a data set has at most {MOST_ROWS} rows")
                rows[row.id] = row
    except OSError as error:
        names = ", ".join(sorted(found.stem for found in SHIPPED.glob("*.jsonl")))
        raise UsageError(
            f"--dataset: cannot read {path}: {error.strerror or error} (shipped data sets: {names})"
        ) from None
    if not rows:
        raise UsageError(f"--dataset {path} is empty")
    return list(rows.values())


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number. No longer one is read than a job's input may be."""
    number = 0
    while raw := file.readline(RUN_LIMIT_BYTES + 1):
        number += 1
        if len(raw) > RUN_LIMIT_BYTES:
            _refuse(path, number, f"more than {RUN_LIMIT_BYTES // 10**6} MB: RunPod takes no such input")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            _refuse(path, number, "not UTF-8 text")
        if text.strip():
            yield number, text


def _row(text: str, path: Path, number: int) -> Row:
    try:
        value = json.loads(text, parse_constant=_no_number)
        deep = too_deep(value)
    except RecursionError:
        deep = True
    except ValueError as error:
        _refuse(path, number, f"not JSON: {line(error, 80)}")
    if deep:
        _refuse(path, number, "JSON nested too deep")
    if not isinstance(value, dict):
        _refuse(path, number, "a row is an object with id, input and expect")
    try:
        for key in value:
            if key not in _ROW_KEYS:
                raise ValueError(f"a row has no key {line(key, 60)!r}: it has id, input and expect")
        name, given = value.get("id"), value.get("input")
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
            raise ValueError("id must be a text")
        if not isinstance(given, dict) or not given:
            raise ValueError("input must be an object, a job's input")
        return Row(name, given, _expect(value.get("expect")))
    except ValueError as error:
        _refuse(path, number, line(error))


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _expect(value: Any) -> Expect:
    if not isinstance(value, dict):
        raise ValueError('expect must be an object, like {"valid": true}; {} expects any answer')
    readers: dict[str, Callable[[str, Any], Any]] = {
        "blocked": _flag,
        "intent": _name,
        "valid": _flag,
        "json_schema": lambda _, schema: Schema.of(schema),
        "contains": _texts,
        "avoids": _texts,
    }
    for key in value:
        if key not in readers:
            raise ValueError(f"expect has no key {line(key, 60)!r}: it has {', '.join(readers)}")
    expect = Expect(**{key: readers[key](key, given) for key, given in value.items()})
    others = sorted(set(value) - {"blocked", "intent"})
    if expect.blocked and others:
        raise ValueError(f"a blocked job has no answer of which to expect {', '.join(others)}")
    return expect


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expect.{key} must be true or false")
    return value


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.replace("-", "_").replace(".", "_").isidentifier():
        raise ValueError(f"expect.{key} must be a name, like career_guidance")
    if value in RESERVED:
        raise ValueError(f"expect.{key}: {value} has a meaning of its own in a gate")
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"expect.{key} must be a text, or a list of texts")
    return tuple(texts)


def _refuse(path: Path, number: int, why: str) -> NoReturn:
    raise UsageError(f"--dataset {path} line {number}: {why}")
