"""Profile files: the format as pydantic models, and the profile that is read from one.

Version 2 is the format of docs/profiles.md, which is generated from these models. Version 1, without a `version`, is
converted. Unknown keys stop the start.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from llmpod.worker.errors import StartError
from llmpod.worker.profile import checks, normal, patterns, policy
from llmpod.worker.profile.checks import AnyCheck
from llmpod.worker.profile.request import RequestDefaults
from llmpod.worker.profile.tasks.task import Task

SHIPPED = Path(__file__).parent
TOKENS_PER_WORD = 1.6
"""max_tokens of an intent for each word that its answers must have, at least."""

PatternSet = Annotated[patterns.PatternSet, PlainValidator(patterns.parse)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class JudgeData(_Data):
    """The served model decides what the words of the policies leave open."""

    mode: Literal["off", "suspect", "always"] = Field(
        "off",
        description="`off`: what is suspect is blocked; `suspect`: the model is asked; `always`: about every prompt",
    )
    deadline_s: float = Field(5, gt=0, le=600, description="seconds for its answer; later, or failed, is blocked")
    message: str = Field("This assistant does not answer that.", description="what the client is told, with `always`")


class PolicyData(_Data):
    """A topic that is not answered."""

    name: str = Field(min_length=1, description="the reply's and the log's `intent` of a blocked job")
    message: str = Field(min_length=1, description="what the client is told")
    topic: str = Field("", description="what is blocked, in a few words, for the judge; the name by default")
    certain: tuple[tuple[PatternSet, ...], ...] = Field(
        (), description="groups that block; a group is found where all its sets of patterns stand within `window` words"
    )
    suspect: tuple[tuple[PatternSet, ...], ...] = Field(
        (), description="groups about which the judge is asked, or that block without one"
    )
    never: tuple[PatternSet, ...] = Field((), description="patterns whose words do not count")
    window: int = Field(12, ge=1, le=200, description="words")
    otherwise: bool = Field(False, description="also blocks what no intent's phrase identifies")


class IntentData(_Data):
    """A topic that is answered."""

    name: str = Field(min_length=1, description="the reply's and the log's `intent`")
    phrases: tuple[str, ...] = Field((), description="phrases that identify it; the first intent that has one is taken")
    system: str | None = Field(None, description="system message of native jobs that bring none")
    prefill: str | None = Field(None, description="text with which its answers begin")
    request: RequestDefaults = Field(RequestDefaults(), description="as `[request]`, for this intent")
    checks: tuple[AnyCheck, ...] = Field((), description="what a valid answer passes")


class CleanData(_Data):
    """Removal of what a model writes around an answer."""

    mode: Literal["off", "report", "apply"] = Field(
        "off", description="`report` counts the characters, `apply` removes them from answers that are not streamed"
    )


class ProfileData(_Data):
    """A profile's file, version 2."""

    version: Literal[2]
    default_intent: str = Field("other", description="the intent of jobs that no phrase identifies")
    request: RequestDefaults = RequestDefaults()
    judge: JudgeData = JudgeData()
    policies: tuple[PolicyData, ...] = ()
    intents: tuple[IntentData, ...] = Field(
        (IntentData(name="other"),), min_length=1, description="topics that are answered; without any, all are `other`"
    )
    clean: CleanData = CleanData()
    tasks: tuple[Task, ...] = Field((), description="requests by name, whose answers are JSON")


class _ChecksV1(_Data):
    min_words: int = Field(0, ge=0)
    max_words: int | None = Field(None, ge=1)
    min_unique_ratio: float = Field(0.0, ge=0, le=1)
    must_mention: tuple[str, ...] = ()

    def converted(self) -> tuple[AnyCheck, ...]:
        found: list[AnyCheck] = [
            checks.Words(kind="words", min=self.min_words, max=self.max_words),
            checks.UniqueRatio(kind="unique_ratio", min=self.min_unique_ratio),
        ]
        if self.must_mention:
            found.append(checks.Mentions(kind="mentions", any=self.must_mention))
        return tuple(found)


class _IntentV1(_Data):
    name: str
    phrases: tuple[str, ...] = ()
    blocked: str | None = None
    checks: _ChecksV1 = _ChecksV1()


class _ProfileV1(_Data):
    version: Literal[1] = 1
    default_intent: str
    intents: tuple[_IntentV1, ...] = Field(min_length=1)

    def converted(self) -> ProfileData:
        """A blocked intent is a policy, whose phrases are certain."""
        blocked = [intent for intent in self.intents if intent.blocked is not None]
        return ProfileData(
            version=2,
            default_intent=self.default_intent,
            policies=tuple(
                PolicyData(name=intent.name, message=intent.blocked or "Blocked.").model_copy(
                    update={
                        "certain": ((_literals(intent.phrases),),) if intent.phrases else (),
                        "otherwise": intent.name == self.default_intent,
                    }
                )
                for intent in blocked
            ),
            intents=tuple(
                IntentData(name=intent.name, phrases=intent.phrases, checks=intent.checks.converted())
                for intent in self.intents
                if intent.blocked is None or intent.name == self.default_intent
            ),
        )


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
                patterns.PatternSet(tuple(pattern for found in one.never for pattern in found.patterns)),
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
        return tuple((intent, _literals(intent.phrases)) for intent in self.data.intents)

    @cached_property
    def _vocabulary(self) -> patterns.Vocabulary:
        vocabulary = patterns.Vocabulary()
        for _, phrases in self._phrases:
            vocabulary.add(phrases.patterns)
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
        if self._otherwise is None or (found is not None and found.by == "certain") or self._identified(texts):
            return found
        return policy.Verdict(self._otherwise, "certain")

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
    data = _ProfileV1.model_validate(raw).converted() if first else ProfileData.model_validate(raw, context=folder)
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


def _literals(phrases: Iterable[str]) -> patterns.PatternSet:
    return patterns.PatternSet(tuple(map(patterns.literal, phrases)))


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
