"""Request fields that vLLM ignores: renamed, refused, or ignored and reported.

vLLM ignores every field that it does not know. That is right for one that changes nothing, and wrong for one that is
misspelt, or that asks for something which then does not happen. So, for a field that has a value and that the route's
own model does not have:

1. one that vLLM once had, or that others spell otherwise, is taken under its present name (MOVED);
2. one that asks for what nobody here does is refused with the cure, unless its value asks for nothing (REFUSED);
3. one that another route here reads (a prompt, a sampling parameter, a constraint) is refused as well;
4. one of the route's own client library (sdk_parameters.json) is ignored and reported;
5. one that resembles a known one is taken for a misspelling and refused;
6. any other belongs to some other service: it is ignored and reported.

null asks for nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import orjson

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits, route_catalog
from llmpod.worker.jobs.client_fields import (
    MOVED,
    REFUSED,
    Settled,
    check_format,
    empty,
    move,
    refused,
    resembles,
    unknown,
)
from llmpod.worker.routes import prompt_fields

SDK_PARAMETERS: dict[str, frozenset[str]] = {
    route: frozenset(names)
    for route, names in orjson.loads(Path(__file__).with_name("sdk_parameters.json").read_bytes()).items()
}
"""The parameters that the openai and anthropic packages know, by route."""
MAX_IGNORED = 32
"""Fields that may be ignored in one request: each is compared with all that are known."""

_OURS = frozenset({"model", "stream", "filename", "request_id", "metadata", "user"})
"""Read by this worker itself, on every route."""
_NOT_MISSPELT = frozenset({"models"})
"""Fields of other services that resemble one of ours: OpenRouter's models to fall back on."""
_TOKEN_LIMITS = frozenset(name for rule in route_catalog.RULES.values() for name in rule.max_tokens)


def settle(
    rule: route_catalog.Rule, body: Mapping[str, Any], fields: Collection[str], sampling: Mapping[str, Any]
) -> Settled:
    """Apply the rules above to a body. `fields`: what vLLM reads there; `sampling`: parameters and their defaults.

    Raises:
        JobError: unknown_field or unsupported, with the cure.
    """
    given = {name: value for name, value in body.items() if value is not None}
    if given.get("stream") is True and "stream" not in fields:
        raise JobError(Code.UNSUPPORTED, f"{rule.path} does not stream: leave stream out.", field="stream")
    if isinstance(text := given.get("text"), dict):
        check_format("text.format", text.get("format"))
    check_format("response_format", given.get("response_format"))
    settled = Settled({name: value for name, value in given.items() if name in fields or name in _OURS})
    if rule.path.endswith("/rerank") and isinstance(documents := given.get("documents"), list):
        settled.body["documents"] = [_text_of(document) for document in documents]
    for name, value in given.items():
        if name in settled.body:
            continue
        if name in MOVED and MOVED[name][0] in fields:
            move(settled, name, value, MOVED[name])
        else:
            _refuse_if_asking(rule, name, value, fields, sampling)
            settled.ignored.append(name)
            if len(settled.ignored) > MAX_IGNORED:
                raise JobError(
                    Code.UNKNOWN_FIELD,
                    f"{rule.path} does not know {name[:64]}, nor {MAX_IGNORED} other fields of the request.",
                    field=name[:64],
                )
    return settled


def _text_of(document: object) -> object:
    """The text of a document to rank: Cohere's and Jina's clients also send {"text": …}, vLLM accepts only text."""
    return document["text"] if isinstance(document, dict) and document.keys() == {"text"} else document


def _refuse_if_asking(
    rule: route_catalog.Rule, name: str, value: object, fields: Collection[str], sampling: Mapping[str, Any]
) -> None:
    if name in REFUSED:
        refusal = REFUSED[name]
        if refusal.asks(value):
            raise refused(name, refusal)
        return
    read_elsewhere = name in prompt_fields.PROMPT_FIELDS or (
        rule.kind == "generate" and (name in sampling or name in _TOKEN_LIMITS or name in limits.CONSTRAINTS)
    )
    if name in MOVED or read_elsewhere:
        if empty(value) or (name in sampling and value == sampling[name]):
            return
        limit = next((known for known in rule.max_tokens if known in fields), None) if name in _TOKEN_LIMITS else None
        meant = limit or resembles(name, fields, cutoff=0.7)
        raise unknown(name, f"{rule.path} has no {name}.", meant)
    package = SDK_PARAMETERS.get(rule.path.removesuffix("/batch"), frozenset())
    if name in package or name in _NOT_MISSPELT:
        return
    meant = resembles(name, {*fields, *package})
    if meant is not None:
        raise unknown(name, f"{rule.path} has no {name}.", meant)
