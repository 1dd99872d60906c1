"""Traversal of nested JSON without recursion, for input of any depth."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
