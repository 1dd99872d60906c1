"""Tables of request fields from other APIs: renamed, refused or ignored."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from llmpod.worker.errors import Code, JobError


@dataclass(frozen=True)
class Refusal:
    """Why a field is refused. `cure`: what to do instead. `harmless`: values that request nothing and are accepted."""

    cure: str
    harmless: tuple[object, ...] = ()
    even_empty: bool = False  # an empty value is refused as well

    def asks(self, value: object) -> bool:
        """Whether the value requests something."""
        return value not in self.harmless and (self.even_empty or not empty(value))


@dataclass
class Settled:
    """A request after unknown fields were handled, with the fields that were moved or ignored."""

    body: dict[str, Any]
    ignored: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)  # name -> the path under which it was taken

    def as_dict(self) -> dict[str, Any]:
        """The handled fields for the reply's `limits`."""
        fields = {"ignored": [name[:64] for name in self.ignored], "moved": self.moved}
        return {name: value for name, value in fields.items() if value}


MOVED = {
    "guided_json": ("structured_outputs", "json"),
    "guided_regex": ("structured_outputs", "regex"),
    "guided_choice": ("structured_outputs", "choice"),
    "guided_grammar": ("structured_outputs", "grammar"),
    "guided_whitespace_pattern": ("structured_outputs", "whitespace_pattern"),
    "enable_thinking": ("chat_template_kwargs", "enable_thinking"),
}
"""Current path of a moved field; refused on a route that does not have that path."""

_TEXT_ONLY = "This worker generates text only."
_NO_BEAM = "Beam search is on /v1/completions and /v1/chat/completions: use_beam_search."
REFUSED = {
    "audio": Refusal(_TEXT_ONLY, even_empty=True),
    "modalities": Refusal(f'{_TEXT_ONLY} Leave it out, or give ["text"].', (["text"],)),
    "functions": Refusal("Give them as tools: {type: function, function: …}."),
    "function_call": Refusal("Use tools and tool_choice.", ("none", "auto")),
    "web_search_options": Refusal("This worker has no web search: put the information into the prompt.", (), True),
    "plugins": Refusal("This worker has no plugins."),
    "store": Refusal("Only /v1/responses keeps its answers, for a while."),
    "background": Refusal("Send the job to RunPod's /run, which works in the background on every route."),
    "conversation": Refusal(
        "This worker does not store conversations: send the earlier turns, or previous_response_id."
    ),
    "previous_response_id": Refusal("Only /v1/responses keeps its answers, for a while."),
    "thread": Refusal("This worker does not store conversations: send the earlier turns in messages."),
    "compaction": Refusal("This worker does not summarise conversations: ask for it in messages."),
    "container": Refusal("This worker has no containers to run code in."),
    "mcp_servers": Refusal("This worker calls no MCP servers: give their tools in tools, and call them yourself."),
    "moderation": Refusal("This worker has no moderation."),
    "inference_geo": Refusal("RunPod's endpoint decides where it runs.", ("global",)),
    "best_of": Refusal("vLLM has no best_of any more: ask for n answers and choose.", (1,)),
    "use_beam_search": Refusal(_NO_BEAM),
    "early_stopping": Refusal(_NO_BEAM),
    "length_penalty": Refusal(_NO_BEAM, (1,)),
    "kv_transfer_params": Refusal("It is for disaggregated serving, which this worker does not do."),
    "ec_transfer_params": Refusal("It is for disaggregated serving, which this worker does not do."),
    "vllm_xargs": Refusal("No part of this worker reads it."),
    "logits_processors": Refusal("Requests cannot contain code."),
    "response_format": Refusal("On /v1/responses it is text.format, on /v1/messages output_config.format."),
    "json_schema": Refusal("Use response_format: {type: json_schema, json_schema: {name, schema}}."),
    "tools": Refusal("Tools are on /v1/chat/completions, /v1/responses and /v1/messages."),
    "tool_choice": Refusal("Tools are on /v1/chat/completions, /v1/responses and /v1/messages.", ("none", "auto")),
    "top_logprobs": Refusal("On /v1/completions, set the number in logprobs.", (0,)),
    "stop_sequences": Refusal("Use stop."),
    "stop": Refusal("On /v1/messages it is stop_sequences."),
    "system": Refusal("Put it first in messages, with the role system."),
    "rank_fields": Refusal("Documents are ranked by their text: give that.", (["text"],)),
    "extra_body": Refusal("That is an argument of the openai package: put what is in it beside the other fields."),
    "allow_regeneration": Refusal("Answers are not generated again: bound their form with structured_outputs."),
}
"""Fields that request something unsupported by this worker, or by this route."""


def refused(path: str, refusal: Refusal) -> JobError:
    """The error for a field that requests an unsupported feature."""
    return JobError(Code.UNKNOWN_FIELD, f"{path[:200]} is not supported here. {refusal.cure}", field=path[:200])


def unknown(path: str, message: str, meant: str | None) -> JobError:
    """The error for a field that nothing here knows. `meant`: the known one that it resembles."""
    advice = f" Did you mean {meant}?" if meant else ""
    return JobError(Code.UNKNOWN_FIELD, message + advice, field=path[:200])


def resembles(name: str, known: Collection[str], *, cutoff: float = 0.82) -> str | None:
    """The known name that `name` probably misspells: other case, word order or nearly the same letters."""
    if len(name) > 64:
        return None
    plain, words = _letters(name), sorted(name.split("_"))
    for other in known:
        if _letters(other) == plain or sorted(other.split("_")) == words:
            return other
    close = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=cutoff)
    return close[0] if close else None


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def move(settled: Settled, name: str, value: object, to: tuple[str, ...]) -> None:
    """Move the field `name` to its current path, merging with what the client set there."""
    target, leaf, path = settled.body, to[-1], ".".join(to)
    for step in to[:-1]:
        inside = target.get(step) or {}
        if not isinstance(inside, dict):
            raise JobError(Code.INVALID_INPUT, f"{step} must be an object.", field=step)
        target[step] = target = dict(inside)
    if target.get(leaf) not in (None, value):
        raise JobError(Code.INVALID_INPUT, f"{name} and {path} are both given, and differ.", field=name)
    target[leaf] = value
    settled.moved[name] = path


def check_format(path: str, value: object) -> None:
    """Reject a response format that holds a schema although its type does not use one."""
    if not isinstance(value, dict) or value.get("type") not in ("text", "json_object"):
        return
    extra = next((str(key)[:64] for key in value if key != "type" and value[key] is not None), None)
    if extra is not None:
        raise JobError(
            Code.UNKNOWN_FIELD,
            f"{path}.{extra} binds nothing while {path}.type is {value['type']}: use the type json_schema.",
            field=f"{path}.{extra}",
        )


def empty(value: object) -> bool:
    """Whether a value requests nothing, whatever its field means."""
    return value is False or value in ([], {}, "")
