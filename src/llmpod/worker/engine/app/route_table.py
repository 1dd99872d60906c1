"""Route table of vLLM's application, read from the application itself."""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Route:
    """A path of an ASGI application, with its methods and body fields."""

    path: str
    pattern: re.Pattern[str]
    methods: frozenset[str]
    fields: frozenset[str] | None  # what its body may hold; None: not known


def read(app: Any) -> list[Route]:
    """Read the application's routes; a mounted application (/metrics) counts as GET."""
    return [
        Route(
            path=route.path,
            pattern=re.compile(re.sub(r"\{\w+(?::\w+)?\}", "[^/]+", route.path)),
            methods=frozenset(getattr(route, "methods", None) or {"GET"}),
            fields=_body_fields(getattr(route, "endpoint", None)),
        )
        for route in app.routes
        if getattr(route, "path", None)
    ]


def _body_fields(endpoint: Any) -> frozenset[str] | None:
    """Field names of the pydantic model, or union of models, of a route's body."""
    if endpoint is None:
        return None
    try:
        hint = typing.get_type_hints(endpoint, include_extras=False).get("request")
    except (NameError, TypeError):
        return None
    models = [model for model in typing.get_args(hint) or (hint,) if hasattr(model, "model_fields")]
    names = {name for model in models for name in model.model_fields}
    names |= {info.alias for model in models for info in model.model_fields.values() if isinstance(info.alias, str)}
    return frozenset(names) or None
