"""The tables of docs/profiles.md, from the pydantic models of a profile's file."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmpod.worker.profile import checks
from llmpod.worker.profile.data import ProfileData
from llmpod.worker.profile.patterns import PatternSet
from llmpod.worker.profile.tasks import rules
from llmpod.worker.profile.tasks.paths import MISSING, Path
from llmpod.worker.profile.tasks.rule_values import Expression

BEGIN, END = "<!-- format: builder/profile_docs.py -->\n", "<!-- end of the format -->"
WORDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "value",
    PatternSet: "pattern set",
    Decimal: "number",
    Path: "path",
    Expression: "path, sum(path), count(path) or number",
    re.Pattern[str]: "regular expression",
    tuple[tuple[Path, Any], ...]: "table of paths and values",
}


def page(text: str) -> str:
    """docs/profiles.md with the tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(_tables()) + "\n" + END + after


def _tables() -> Iterator[str]:
    seen: set[type[BaseModel]] = set()
    for path, model in _models("", ProfileData):
        if model in seen:
            continue
        seen.add(model)
        yield f"### {f'`{path}`' if path else 'The file'}"
        yield ""
        yield _summary(model)
        yield ""
        yield from _table(model)
    yield "### Checks"
    yield ""
    yield "Each has a `kind` and the keys of its row. An answer that `max_tokens` cut is never valid."
    yield ""
    yield from _variants("kind", "passes", checks.AnyCheck)
    yield "### Rules"
    yield ""
    yield "Each has a `rule` and the keys of its row. What is absent or null passes, but for `equal`."
    yield ""
    yield from _variants("rule", "holds if", rules.AnyRule)


def _variants(key: str, meaning: str, models: Any) -> Iterator[str]:
    """A row for each model of a union that `key` tells apart."""
    yield f"| {key} | {meaning} | keys |"
    yield "|---|---|---|"
    for model in get_args(get_args(models)[0]):
        fields = {info.alias or name: info for name, info in model.model_fields.items() if name != key}
        keys = ", ".join(f"`{name}` ({_kind(info.annotation)}{_shown(info)})" for name, info in fields.items())
        kind = get_args(model.model_fields[key].annotation)[0]
        yield f"| `{kind}` | {_cell(_summary(model))} | {_cell(keys)} |"
    yield ""


def _models(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, info in model.model_fields.items():
        for inner, listed in _inner(info.annotation):
            if not issubclass(inner, checks.Check | rules.Rule):
                place = f"{path.strip('[]')}.{name}" if path else name
                yield from _models(f"[[{place}]]" if listed else f"[{place}]", inner)


def _inner(annotation: Any, *, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    for part in get_args(annotation) if get_origin(annotation) is not typing.Literal else ():
        yield from _inner(part, listed=listed or get_origin(annotation) in (list, tuple))


def _table(model: type[BaseModel]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, info in model.model_fields.items():
        inner = next(_inner(info.annotation), None)
        meaning = info.description or (_summary(inner[0]) if inner else "")
        shown = "required" if info.is_required() else _default(info)
        yield f"| `{info.alias or name}` | {_kind(info.annotation)} | {shown} | {_cell(meaning)} |"
    yield ""


def _kind(annotation: Any) -> str:
    if annotation in WORDS:
        return WORDS[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin in (typing.Union, types.UnionType):
        given = [part for part in parts if part is not types.NoneType]
        for variants, kind in ((checks.Check, "check"), (rules.Rule, "rule")):
            if all(isinstance(part, type) and issubclass(part, variants) for part in given):
                return kind
        return " or ".join(map(_kind, given))
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (list, tuple):
        return f"list of {_plural(_kind(parts[0]))}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    return WORDS[annotation]


def _plural(kind: str) -> str:
    return kind.replace("list of", "lists of", 1) if kind.startswith("list of") else f"{kind}s"


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    tables = isinstance(value, BaseModel) or (
        isinstance(value, tuple) and isinstance(next(iter(value), None), BaseModel)
    )
    if value is None or value is MISSING or value in ((), {}, "") or tables:
        return "—"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _shown(info: FieldInfo) -> str:
    shown = "" if info.is_required() else _default(info)
    return f", {shown}" if shown not in ("", "—") else ""


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
