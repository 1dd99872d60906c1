"""Walks JSON that a client wrote, however deep: with a list of what is left to see, where recursion would end."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any


def objects(value: object, *, closed: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Every object in `value`, outer ones before what they hold; not what stands under the names `closed`."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, list):
            pending += found
        elif isinstance(found, dict):
            yield found
            pending += [inner for name, inner in found.items() if name not in closed]
