"""Profiles: policy and answer checks of a use case, read from a TOML file.

The policy is decided on the prompt alone, before the engine is called. It depends neither on routing nor on
`enable_validation`, so nothing a client sends can weaken it. Phrases match whole words, so "Delhi startups" holds no
greeting and "brainstorm" no weather.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmpod.worker.errors import StartError

SHIPPED = Path(__file__).with_name("profiles")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Checks(_Data):
    """Checks that a valid answer passes."""

    min_words: int = Field(0, ge=0)
    max_words: int | None = Field(None, ge=1)
    min_unique_ratio: float = Field(0.0, ge=0, le=1)  # distinct words / words, for answers of more than 20 words
    must_mention: tuple[str, ...] = ()  # at least one of these


class Intent(_Data):
    """A topic: the phrases that identify it, and whether this worker answers it."""

    name: str
    phrases: tuple[str, ...] = ()
    blocked: str | None = None  # the message to the client; None: the intent is answered
    checks: Checks = Checks()


class _File(_Data):
    default_intent: str
    intents: tuple[Intent, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Profile:
    """Intents in matching order, and the default intent."""

    intents: tuple[Intent, ...]
    default: Intent

    def intent_of(self, texts: Iterable[str]) -> Intent:
        """The intent of a client's texts. A blocked intent takes precedence, wherever its phrase occurs."""
        text = "\n".join(texts)
        found = [intent for intent in self.intents if _mentions(text, intent.phrases)]
        return next((intent for intent in found if intent.blocked is not None), found[0] if found else self.default)


def validate(text: str, finish_reason: str | None, checks: Checks) -> list[str]:
    """Problems of an answer; an empty list means valid. An answer cut by max_tokens is never valid."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())
    issues = []
    if finish_reason == "length":
        issues.append("cut off by max_tokens")
    if len(words) < checks.min_words:
        issues.append(f"{len(words)} words, at least {checks.min_words} expected")
    if checks.max_words is not None and len(words) > checks.max_words:
        issues.append(f"{len(words)} words, at most {checks.max_words} expected")
    if len(words) > 20 and len(set(words)) / len(words) < checks.min_unique_ratio:
        issues.append("repeats itself")
    if checks.must_mention and not _mentions(text, checks.must_mention):
        issues.append("mentions none of the expected terms")
    return issues


def verdict(intent: Intent, texts: Mapping[int, str], finish_reasons: Mapping[int, str]) -> dict[str, Any]:
    """The reply's `validation`: valid if every answer is; with several, an issue names its answer's index."""
    issues = []
    for index, text in sorted(texts.items()):
        prefix = f"choice {index}: " if len(texts) > 1 else ""
        issues += [prefix + issue for issue in validate(text, finish_reasons.get(index), intent.checks)]
    return {"valid": not issues, "issues": issues, "intent": intent.name}


def load(name: str) -> Profile:
    """Load a profile: a shipped one by its name, any other by its path.

    Raises:
        StartError: there is no such file, or it is not a profile.
    """
    path = SHIPPED / f"{name}.toml" if re.fullmatch(r"[\w-]+", name) else Path(name)
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        file = _File.model_validate(raw)
    except FileNotFoundError:
        shipped = ", ".join(sorted(found.stem for found in SHIPPED.glob("*.toml")))
        raise StartError(
            f"PROFILE={name}: there is no such file.", f"Give a TOML file's path, or a shipped profile: {shipped}."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"PROFILE={name} cannot be read: {error}.", "Correct the file.") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise StartError(f"PROFILE={name}: {where}: {fault['msg']}.", "Correct the file.") from None
    default = next((intent for intent in file.intents if intent.name == file.default_intent), None)
    if default is None:
        raise StartError(
            f"PROFILE={name}: default_intent {file.default_intent!r} is not among the intents.", "Correct the file."
        )
    return Profile(file.intents, default)


def _mentions(text: str, phrases: Iterable[str]) -> bool:
    wanted = "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in phrases)
    return bool(wanted) and re.search(rf"(?<!\w)(?:{wanted})(?!\w)", text, re.IGNORECASE) is not None
