"""pydantic models that report the first wrong element of a list, and not every one.

vLLM's application validates bodies in the event loop. A list of a thousand things that are no messages makes an error
per thing and form that it might have had: 233,000 of them, 4 s, for a body of 3 kB. One is all that a client is told.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from pydantic_core import core_schema

COLLECTIONS = ("list_schema", "set_schema", "frozenset_schema", "tuple_schema", "dict_schema")


@contextlib.contextmanager
def only() -> Iterator[None]:
    """Models that are defined meanwhile stop at the first wrong element, as if each of their lists said `FailFast`."""
    before = {name: getattr(core_schema, name) for name in COLLECTIONS}
    try:
        for name, schema in before.items():
            setattr(core_schema, name, functools.partial(schema, fail_fast=True))
        yield
    finally:
        for name, schema in before.items():
            setattr(core_schema, name, schema)
