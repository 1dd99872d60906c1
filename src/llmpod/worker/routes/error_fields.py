"""Error fields: maps vLLM's error messages to fields of the body, and shortens the messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from llmpod.worker.jobs import limits
from llmpod.worker.routes.prompt_fields import PROMPT_FIELDS


def field_of(param: str | None, message: str, body: Mapping[str, Any]) -> str | None:
    """The field of `body` that vLLM's error refers to. `param`: the path that vLLM reports, if any.

    vLLM reports paths as pydantic visited them: with names of union members, and starting inside the body where a part
    of it is parsed separately. So the path is resolved again against the body.
    """
    if not param:
        return field_from_message(message, body)
    first, *rest = param.removeprefix("body.").split(".")
    if first.isdigit():
        return next((name for name in PROMPT_FIELDS if isinstance(body.get(name), list)), None)
    path, value = [first], body.get(first)
    for step in rest:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif step[:1].isupper() or step is not rest[-1] or not isinstance(value, dict):
            continue  # no step of the body
        path.append(step)  # the last one may be what the body lacks
    return ".".join(path)


def plain(message: str, field: str | None, body: Mapping[str, Any]) -> str:
    """vLLM's message; of pydantic's list of errors only the one for `field`."""
    head, _, lines = message.partition("\n")
    if not re.fullmatch(r"\d+ validation errors?:", head):
        return message
    found = [error for line in lines.splitlines() if isinstance(error := _literal(line), dict)]
    about = [str(error.get("msg")) for error in found if field_of(str(error.get("loc")), "", body) == field]
    shortened = "; ".join(dict.fromkeys(about[:10]))
    return f"{field}: {shortened}." if shortened else message


def _literal(line: str) -> object:
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None  # it was cut


def field_from_message(message: str, body: Mapping[str, Any]) -> str | None:
    """The field named in vLLM's error message, for errors without a path."""
    text = message.casefold().replace("_", " ")
    if "empty" in text:
        empty = next((name for name in PROMPT_FIELDS if body.get(name) in ("", [])), None)
        if empty is not None:
            return empty
    if re.search(r"\b(grammar|regex|schema|structured|structural|guided|choice)\b", text):
        names = (*limits.CONSTRAINTS, "tools")
        forced = "structural tag" in text and "tools" in body  # which vLLM makes of the tools
        found = "tools" if forced else next((name for name in names if name in body), None)
        if found is not None:
            return found
    named = [name for name in body if name not in ("model", "input", "prompt") and name.replace("_", " ") in text]
    return max(named, key=len) if named else next((name for name in PROMPT_FIELDS if name in body), None)
