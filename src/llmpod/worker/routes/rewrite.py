"""Rewrites the body of a route job: limits, the operator's defaults and the served model name.

Pure decisions on plain data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits, tool_choice
from llmpod.worker.jobs.route_catalog import RULES, Rule
from llmpod.worker.routes import prompt_fields
from llmpod.worker.settings import Settings


@dataclass
class Rewritten:
    """A body for vLLM, and the decisions made on the way."""

    body: dict[str, Any]
    max_tokens: limits.MaxTokens | None = None
    client: dict[str, str] = field(default_factory=dict)  # the client's own ids, for the log
    required_call: tool_choice.RequiredToolCall | None = None


def rewrite(
    rule: Rule,
    body: Mapping[str, Any],
    settings: Settings,
    *,
    max_model_len: int = 0,
    fields: Collection[str] | None = None,
) -> Rewritten:
    """Apply limits to the numbers of a body. vLLM validates the result, so it is not changed afterwards.

    `max_model_len`: 0 if it is not known. `fields`: what the route's body may hold, if vLLM says.

    Raises:
        JobError: a number is none, or beyond what the operator allows.
    """
    if not isinstance(body.get("stream"), bool | None):  # vLLM would also read "true" and 1, RunPod's endpoint not
        raise JobError(Code.INVALID_INPUT, "stream must be true or false.", field="stream")
    new = Rewritten(dict(body))
    new.client = {name: text for name in ("user", "request_id") if (text := _id(body.get(name)))}
    if isinstance(body.get("metadata"), dict):
        ids = {f"metadata.{key}": _id(value) for key, value in list(body["metadata"].items())[:8] if key != "user"}
        new.client |= {name: text for name, text in ids.items() if text}
    new.body.pop("request_id", None)  # the engine's request always has the job's id
    if rule.scores:
        for name, chars in prompt_fields.inputs_of(body):
            limits.check_inputs(chars, settings, field=name)
    if rule.path == "/generative_scoring":
        _refuse_text_as_ids(body)
    if rule.kind != "generate":
        return new
    for name, value in body.items():
        if name.endswith("_transfer_params") and value is not None:
            raise JobError(
                Code.UNSUPPORTED,
                f"{name[:100]} is for disaggregated serving, which this worker does not do.",
                field=name[:100],
            )
    if body.get("background"):
        raise JobError(
            Code.UNSUPPORTED,
            "background is not offered: its answer would end with this worker. Send the job to RunPod's /run, which "
            "works in the background, and poll /status.",
            field="background",
        )
    if rule.max_tokens:
        _limit_answers(body, settings)
        new.max_tokens = _limit_max_tokens(rule, new.body, settings, max_model_len, fields)
        _check_min_tokens(body.get("min_tokens"), max(1, new.max_tokens.effective))
    if tool_choice.forced(body):
        new.body["tools"] = tool_choice.strict(body["tools"])
        new.required_call = tool_choice.RequiredToolCall()
    defaults = dict(settings.default_sampling_params)
    if new.max_tokens is not None and isinstance(defaults.get("min_tokens"), int):
        defaults["min_tokens"] = min(defaults["min_tokens"], new.max_tokens.effective)
    for name, value in defaults.items():
        if new.body.get(name) is None and (rule.sampling is None or name in rule.sampling):
            new.body[name] = value
    return new


def _check_min_tokens(min_tokens: object, most: int) -> None:
    """Check that min_tokens is not above max_tokens. A value that is not a number is left to vLLM to reject."""
    if isinstance(min_tokens, int | float) and min_tokens > most:
        message = f"min_tokens is {min_tokens}, but this answer has at most {most} tokens."
        raise JobError(Code.INVALID_INPUT, message, field="min_tokens")


def _limit_answers(body: Mapping[str, Any], settings: Settings) -> None:
    each = max(1, _whole(body, "n") or 1)  # vLLM refuses less than one, after every prompt has been judged
    limits.check_answers(each * prompt_fields.count(body), settings, field="n")


def _refuse_text_as_ids(body: Mapping[str, Any]) -> None:
    """Reject "5" and 5.0 as token ids: vLLM accepts them, which would let text be control tokens."""
    items = body.get("items")
    given_items = items if isinstance(items, list) else ()
    for name, given in (("query", body.get("query")), *(("items", item) for item in given_items)):
        if isinstance(given, list) and any(type(token_id) is not int for token_id in given):
            raise JobError(Code.INVALID_INPUT, f"{name} must be text or lists of whole numbers.", field=name)


def _limit_max_tokens(
    rule: Rule, body: dict[str, Any], settings: Settings, max_model_len: int, fields: Collection[str] | None
) -> limits.MaxTokens:
    """Set max_tokens in the body, also where the client did not: vLLM has other defaults."""
    given = {name: value for name in rule.max_tokens if (value := _whole(body, name)) is not None}
    first = next(iter(given), rule.max_tokens[0])
    max_tokens = limits.cap_max_tokens(given.get(first), settings, field=first)
    if max_tokens.requested is None:  # this worker's choice must fit the model, a client's is refused by vLLM
        max_tokens = max_tokens.fitting(max_model_len or None)
    for name, value in given.items():
        body[name] = min(value, max_tokens.effective)
    # A path that only ALLOWED_ROUTES opens may take neither field: metered_engine.py refuses what exceeds the limit.
    known = rule.max_tokens if rule.path in RULES else [name for name in rule.max_tokens if name in (fields or ())]
    if not given and known and not rule.anthropic:  # Anthropic's API requires it, and vLLM checks that
        body[known[0]] = max_tokens.effective
    return max_tokens


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    """Require a whole number: vLLM also accepts "5" or 5.0, and the limit must apply to what it reads."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise JobError(Code.INVALID_INPUT, f"{name} must be a whole number.", field=name)
    return value


def _id(value: object) -> str | None:
    return value[:128] if isinstance(value, str) and value else None


def resolve_model(given: object, names: Mapping[str, str]) -> str | None:
    """The served name of the client's model; None if it names none. `names`: any name -> served name.

    Raises:
        JobError: not_found, with the valid names.
    """
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        raise JobError(Code.INVALID_INPUT, "model must be text.", field="model")
    found = names.get(given)
    if found is None:
        found = {name.casefold(): served for name, served in names.items()}.get(given.casefold())
    if found is None:
        valid = ", ".join(dict.fromkeys(names.values()))
        raise JobError(
            Code.NOT_FOUND, f"The model {given[:200]!r} does not exist. This worker serves: {valid}.", field="model"
        )
    return found
