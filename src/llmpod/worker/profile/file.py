"""Profile files, and the profile that is read from one. Unknown keys stop the start; no `version` means version 1."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmpod.worker.errors import StartError
from llmpod.worker.profile import checks, normal, patterns, policy
from llmpod.worker.profile.data import IntentData, ProfileData
from llmpod.worker.profile.tasks.task import Task
from llmpod.worker.profile.version1 import ProfileV1

SHIPPED = Path(__file__).parent
TOKENS_PER_WORD = 1.6
"""max_tokens of an intent for each word that its answers must have, at least."""


@dataclass(frozen=True)
class Profile:
    """A profile as the worker uses it."""

    data: ProfileData
    policies: policy.Policies = field(init=False)

    def __post_init__(self) -> None:
        compiled = [
            policy.Policy(
                one.name,
                one.message,
                one.topic or one.name.replace("_", " "),
                one.certain,
                one.suspect,
                patterns.union(one.unless),
                patterns.union(one.never),
                one.window,
            )
            for one in self.data.policies
        ]
        object.__setattr__(self, "policies", policy.Policies(compiled))

    @cached_property
    def default(self) -> IntentData:
        """The intent of jobs that no phrase identifies."""
        return next(intent for intent in self.data.intents if intent.name == self.data.default_intent)

    @cached_property
    def _phrases(self) -> tuple[tuple[IntentData, patterns.PatternSet], ...]:
        return tuple((intent, patterns.literals(intent.phrases)) for intent in self.data.intents)

    @cached_property
    def _vocabulary(self) -> patterns.Vocabulary:
        vocabulary = patterns.Vocabulary()
        for found in (*(phrases for _, phrases in self._phrases), *self.data.answered.words):
            vocabulary.add(found.patterns)
        return vocabulary

    def intent_of(self, texts: Iterable[str]) -> IntentData:
        """The first intent with a phrase in a client's texts, else the default."""
        return self._identified(texts) or self.default

    def _identified(self, texts: Iterable[str]) -> IntentData | None:
        text = patterns.Text(normal.words("\n".join(texts)), self._vocabulary)
        for intent, phrases in self._phrases:
            if next(text.find(phrases), None) is not None:
                return intent
        return None

    def verdict(self, texts: Sequence[str]) -> policy.Verdict | None:
        """The policies' verdict on texts that one model reads; None: they may be answered."""
        found = self.policies.verdict(texts)
        if found is not None and found.by == "certain":
            return found
        if self._otherwise is not None and not self._identified(texts):
            return policy.Verdict(self._otherwise, "certain")
        if found is None and not self.data.answered.undecided and not self._is_answered(texts):
            return policy.Verdict(policy.Policy("undecided", self.data.judge.message), "undecided")
        return found

    def _is_answered(self, texts: Sequence[str]) -> bool:
        """Whether an intent's phrase is in the texts, and nothing that is not among the words of what is answered."""
        joined = "\n".join(texts)
        words = normal.words(joined)
        if not all(self._vocabulary.knows(word.text) for word in words) or not normal.is_plain(joined):
            return False
        text = patterns.Text(words, self._vocabulary)
        topics = [span for _, phrases in self._phrases for span in text.find(phrases, plain=True)]
        spans = (*topics, *(span for words in self.data.answered.words for span in text.find(words, plain=True)))
        return bool(topics) and len({at for span in spans for at in span.matched}) == len(text.words)

    @cached_property
    def _otherwise(self) -> policy.Policy | None:
        given = zip(self.data.policies, self.policies.all, strict=True)
        return next((compiled for one, compiled in given if one.otherwise), None)

    def max_tokens(self, intent: IntentData) -> int | None:
        """max_tokens of an intent's jobs that name none; None: the worker's own."""
        return intent.request.max_tokens or self.data.request.max_tokens

    def sampling(self, intent: IntentData) -> dict[str, Any]:
        """Sampling parameters of an intent's jobs."""
        return self.data.request.sampling | intent.request.sampling

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The JSON tasks by name."""
        return {task.name: task for task in self.data.tasks}

    def most_tokens(self) -> int:
        """The largest max_tokens that an intent or a task grants; 0: none says."""
        requests = [intent.request for intent in self.data.intents] + [task.request for task in self.data.tasks]
        return max((request.max_tokens or 0 for request in requests), default=0)

    def all_sampling(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Where sampling parameters stand in the file, and those that jobs get there."""
        yield "request.sampling", self.data.request.sampling
        for number, intent in enumerate(self.data.intents):
            yield f"intents[{number}].request.sampling", self.sampling(intent)
        for number, task in enumerate(self.data.tasks):
            yield f"tasks[{number}].request.sampling", self.data.request.sampling | task.request.sampling

    def all_forms(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """The tasks by name, each with the structured output of its answers."""
        for task in self.data.tasks:
            yield task.name, task.form


Checked = Iterable[tuple[str, dict[str, Any]]]


def checked_by_engine(profile: Profile | None) -> tuple[Checked, Checked]:
    """The sampling parameters and the structured outputs of a profile, which the engine checks when it starts."""
    return (profile.all_sampling(), profile.all_forms()) if profile is not None else ((), ())


def of(name: str | None) -> Profile | None:
    """The profile of PROFILE, if one is set.

    Raises:
        StartError: as `load`.
    """
    return load(name) if name else None


def load(name: str) -> Profile:
    """Load a profile: a shipped one by its name, any other by its path.

    Raises:
        StartError: there is no such file, or it is not a profile; with the place in it.
    """
    path = SHIPPED / f"{name}.toml" if re.fullmatch(r"[\w-]+", name) else Path(name)
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return read(raw, path.parent)
    except FileNotFoundError:
        shipped = ", ".join(sorted(found.stem for found in SHIPPED.glob("*.toml")))
        raise StartError(
            f"PROFILE={name}: there is no such file.", f"Give a TOML file's path, or a shipped profile: {shipped}."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"PROFILE={name} cannot be read: {error}.", "Correct the file.") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        message = fault["msg"].removeprefix("Value error, ").rstrip(".")
        raise StartError(f"PROFILE={name}: {_path(fault['loc'])}: {message}.", "Correct the file.") from None
    except ProfileError as error:
        raise StartError(f"PROFILE={name}: {error}.", "Correct the file.") from None


class ProfileError(ValueError):
    """What is wrong with a file whose parts are right each for itself."""


def read(raw: Mapping[str, Any], folder: Path | None = None) -> Profile:
    """Read a profile from a file's content; `folder`: where the schemas that it names by a relative path are.

    Raises:
        ValidationError, ProfileError: it is none.
    """
    first = raw.get("version", 1) == 1
    data = ProfileV1.model_validate(raw).converted() if first else ProfileData.model_validate(raw, context=folder)
    _check(data)
    return Profile(data)


def _check(data: ProfileData) -> None:
    for where, request in (
        ("request", data.request),
        *((f"intents[{number}].request", intent.request) for number, intent in enumerate(data.intents)),
        *((f"tasks[{number}].request", task.request) for number, task in enumerate(data.tasks)),
    ):
        if "max_tokens" in request.sampling:
            raise ProfileError(f"{where}.sampling.max_tokens: it stands beside sampling, as {where}.max_tokens")
    for kind, named in (("intents", data.intents), ("policies", data.policies), ("tasks", data.tasks)):
        name, count = Counter(one.name for one in named).most_common(1)[0] if named else ("", 1)
        if count > 1:
            raise ProfileError(f"{kind}: {count} have the name {name!r}")
    if data.default_intent not in [intent.name for intent in data.intents]:
        raise ProfileError(f"default_intent: {data.default_intent!r} is not among the intents")
    for number, intent in enumerate(data.intents):
        for at, phrase in enumerate(intent.phrases):
            if not patterns.literal(phrase):
                raise ProfileError(f"intents[{number}].phrases[{at}]: {phrase!r} holds no word")
        least = max((check.min for check in intent.checks if isinstance(check, checks.Words)), default=0)
        given = intent.request.max_tokens or data.request.max_tokens
        if given is not None and given < TOKENS_PER_WORD * least:
            raise ProfileError(
                f"intents[{number}].request.max_tokens: {given} tokens cannot hold the {least} words that its checks "
                f"ask for, which need {TOKENS_PER_WORD * least:.0f}"
            )


def _path(location: tuple[int | str, ...]) -> str:
    """("intents", 0, "checks", 1, "words", "min") -> intents[0].checks[1].min: without the kind that pydantic adds."""
    path = ""
    for at, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
        elif (
            at
            and isinstance(location[at - 1], int)
            and location[at - 2] in ("checks", "rules")
            and at < len(location) - 1
        ):
            continue
        else:
            path += f".{step}" if path else step
    return path or "the file"
