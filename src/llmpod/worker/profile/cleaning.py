"""Answer cleaning: removes what a model writes around an answer, and nothing of the answer itself.

Pure functions. Idempotent: clean(clean(x)) == clean(x). Headings, brackets, `#words`, `<…>` and `Location:` are part of
answers and stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_REMOVED = 0.2
"""Share of an answer's characters that may be removed; where it would be more, the answer stays as it is."""
LEAST_LEFT = 10
"""Characters that must be left."""

_CHAT_TOKENS = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|end|user|assistant|system)\|>(?:assistant\b\n?)?")
_ROLE = re.compile(r"\A\s*(?:assistant|answer|response|ai|bot)\s*:\s*", re.IGNORECASE)
_META = re.compile(
    r"^[ \t]*(?:context:|answer according to:|answered (?:\d+|an?|one|two|three) \w+ ago)[^\n]*(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_ENDINGS = ("[end]", "[truncated]", "[end of answer]", "[end of response]", "[end of text]")
_DOTS = re.compile(r"\.{4,}")
_PIPES = re.compile(r"(?:[ \t]*\|){4,}[ \t]*(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text. `issue`: why it was left as it is, where too much would have gone."""

    text: str
    removed: int = 0  # characters
    issue: str | None = None


def clean(text: str) -> Cleaned:
    """Clean an answer, or leave it where more than MOST_REMOVED of it would go."""
    new = text
    while True:  # what one rule removes may uncover what another looks for
        before = new
        new = _without_ending(_CHAT_TOKENS.sub("", new))
        new = _META.sub("", _ROLE.sub("", new))
        new = _BLANK_LINES.sub("\n\n", _PIPES.sub("", _DOTS.sub("...", new)))
        if new == before:
            break
    removed = len(text) - len(new)
    if removed and (removed > MOST_REMOVED * len(text) or len(new.strip()) < LEAST_LEFT):
        return Cleaned(text, 0, f"not cleaned: {removed} of {len(text)} characters would go")
    return Cleaned(new, removed)


def _without_ending(text: str) -> str:
    stripped = text.rstrip()
    ending = next((mark for mark in _ENDINGS if stripped.lower().endswith(mark)), None)
    return text if ending is None else stripped[: -len(ending)].rstrip()
