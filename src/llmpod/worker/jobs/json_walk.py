"""Nested JSON: traversal without recursion, for input of any depth, and paths in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any


def objects(value: object, *, closed: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield every object in `value`, outer ones first, except those below the keys in `closed`."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, list):
            pending += found
        elif isinstance(found, dict):
            yield found
            pending += [inner for name, inner in found.items() if name not in closed]


def path_of(keys: Iterable[object]) -> str:
    """The path of a value by the keys and indices that lead to it: messages[0].content."""
    path = ""
    for key in keys:
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
    return path
