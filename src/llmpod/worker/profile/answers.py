"""The reply's `validation`: checks and cleaning of a job's answers. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmpod.worker.profile.checks import Check, validate
from llmpod.worker.profile.cleaning import Cleaned, clean


@dataclass(frozen=True)
class Assessed:
    """`validation` as the reply has it, and the texts as they are returned."""

    validation: dict[str, Any]
    texts: dict[int, str]


def assess(
    intent: str,
    checks: tuple[Check, ...],
    texts: Mapping[int, str],
    finish_reasons: Mapping[int, str],
    *,
    reports: bool = False,
    applies: bool = False,
) -> Assessed:
    """Check and clean the answers of a job, by index; valid if every answer is.

    `reports`: count what cleaning would remove. `applies`: return the cleaned texts, which the checks then judge. A
    valid answer stays valid: where cleaning would take a word too many, it is left alone.
    """
    issues: list[str] = []
    returned: dict[int, str] = {}
    removed = 0
    valid = True
    for index, text in sorted(texts.items()):
        prefix = f"choice {index}: " if len(texts) > 1 else ""
        reason = finish_reasons.get(index)
        cleaned = clean(text) if reports or applies else Cleaned(text)
        found = validate(text, reason, checks)
        if applies and cleaned.removed:
            after = validate(cleaned.text, reason, checks)
            if after and not found:
                cleaned = Cleaned(text, 0)
            else:
                found = after
        removed += cleaned.removed
        returned[index] = cleaned.text if applies else text
        valid = valid and not found
        # That cleaning would have taken too much is said, and is no fault of an answer that passes its checks.
        issues += [prefix + issue for issue in (*found, *([cleaned.issue] if cleaned.issue else []))]
    validation = {
        "valid": valid,
        "issues": issues,
        "intent": intent,
        "sanitized": returned != dict(texts),
        "removed_chars": removed,
    }
    return Assessed(validation, returned)
