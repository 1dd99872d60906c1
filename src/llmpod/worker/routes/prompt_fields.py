"""Prompt texts and token ids in the body of a route job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmpod.worker.jobs.bounds import MEDIA_KEYS

# Fields whose text becomes part of the prompt, on whichever route they stand.
PROMPT_FIELDS = (
    "messages",
    "prompt",
    "suffix",
    "input",
    "instructions",
    "system",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
    "query",
    "queries",
    "items",
    "instruction",
    "text_1",
    "text_2",
    "data_1",
    "data_2",
    "texts",
    "inputs",
    "data",
)
_NO_TEXT = frozenset({"role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "format", "detail", "status"})
_ID_FIELDS = ("prompt", "input", "query", "queries", "items", "documents")


@dataclass(frozen=True)
class Prompt:
    """Texts and token ids of a body that become prompts."""

    texts: tuple[str, ...]
    token_ids: tuple[int, ...] = ()  # prompts given as ids
    field: str = "messages"  # where it stands, for messages

    @property
    def chars(self) -> int:
        """Characters of all texts together; an empty text counts as one."""
        return sum(len(text) or 1 for text in self.texts)


def inputs_of(body: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """The characters of every text to embed, score or classify, by field. Token ids count one each.

    A list has an input per entry; a conversation, a list of ids and anything that is not a list are one.
    """
    for name in PROMPT_FIELDS:
        value = body.get(name)
        if value is None:
            continue
        several = isinstance(value, list) and name != "messages" and value and not isinstance(value[0], int | float)
        yield name, [_chars(one) for one in (value if several else [value])]


def _chars(value: object) -> int:
    """Characters of a value's texts; an empty text, like a token id, counts as one."""
    return sum(len(leaf) or 1 if isinstance(leaf, str) else 1 for leaf in _leaves(value, with_keys=False))


def count(body: Mapping[str, Any]) -> int:
    """Number of prompts in a body: a list of texts, of conversations or of lists of ids has one per entry."""
    lists = (body.get(name) or [0] for name in ("prompt", "messages", "items"))
    return max(len(value) if isinstance(value, list) and not isinstance(value[0], int | dict) else 1 for value in lists)


def truncated(body: Mapping[str, Any]) -> bool:
    """Whether vLLM cuts a prompt that is too long, instead of refusing it."""
    return body.get("truncate_prompt_tokens") is not None or body.get("truncation", "disabled") != "disabled"


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """Collect every text and token id of the fields that become the prompt."""
    texts: list[str] = []
    ids: list[int] = []
    names = [name for name in PROMPT_FIELDS if body.get(name) is not None]
    for name in names:
        for leaf in _leaves(body[name], with_keys=name in ("tools", "functions")):
            if isinstance(leaf, str):
                texts.append(leaf)
            elif name in _ID_FIELDS:
                ids.append(leaf)
    return Prompt(tuple(texts), tuple(ids), names[0] if names else "messages")


def _leaves(value: object, *, with_keys: bool) -> Iterator[str | int]:
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, str) or (isinstance(found, int) and not isinstance(found, bool)):
            yield found
        elif isinstance(found, list):
            pending.extend(reversed(found))
        elif isinstance(found, dict):
            for key in reversed(found):
                if with_keys:
                    pending.extend((found[key], key))
                elif key not in _NO_TEXT and key not in MEDIA_KEYS and not isinstance(found[key], int | float):
                    pending.append(found[key])
