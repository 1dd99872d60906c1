"""A profile's file as pydantic models: the format of docs/profiles.md, which is generated from them. Version 2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from llmpod.worker.profile import patterns
from llmpod.worker.profile.checks import AnyCheck
from llmpod.worker.profile.request import RequestDefaults
from llmpod.worker.profile.tasks.task import Task

PatternSet = Annotated[patterns.PatternSet, PlainValidator(patterns.parse)]


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class JudgeData(Data):
    """The served model decides what the words of the policies leave open."""

    mode: Literal["off", "suspect", "always"] = Field(
        "off",
        description="`off`: what is suspect is blocked; `suspect`: the model is asked; `always`: about every prompt",
    )
    deadline_s: float = Field(5, gt=0, le=600, description="seconds for its answer; later, or failed, is blocked")
    message: str = Field(
        "This assistant does not answer that.", description="what the client is told where no policy names a message"
    )


class PolicyData(Data):
    """A topic that is not answered."""

    name: str = Field(min_length=1, description="the reply's and the log's `intent` of a blocked job")
    message: str = Field(min_length=1, description="what the client is told")
    topic: str = Field("", description="ends the judge's question 'Is the user asking about …?'; the name by default")
    certain: tuple[tuple[PatternSet, ...], ...] = Field(
        (), description="groups that block; a group is found where all its sets of patterns stand within `window` words"
    )
    suspect: tuple[tuple[PatternSet, ...], ...] = Field(
        (), description="groups about which the judge is asked, or that block without one"
    )
    unless: tuple[PatternSet, ...] = Field(
        (), description="patterns in whose sentence what is certain is suspect: there it may be about something else"
    )
    never: tuple[PatternSet, ...] = Field((), description="patterns whose words do not count")
    window: int = Field(12, ge=1, le=200, description="words")
    otherwise: bool = Field(False, description="also blocks what no intent's phrase identifies")


class AnsweredData(Data):
    """What is answered without the judge."""

    undecided: bool = Field(
        True, description="texts that no policy finds; false: they are suspect, but those of `words` alone"
    )
    words: tuple[PatternSet, ...] = Field(
        (), description="a text that an intent's phrase identifies is answered if it has no words but phrases and these"
    )


class IntentData(Data):
    """A topic that is answered."""

    name: str = Field(min_length=1, description="the reply's and the log's `intent`")
    phrases: tuple[str, ...] = Field((), description="phrases that identify it; the first intent that has one is taken")
    system: str | None = Field(None, description="system message of native jobs that bring none")
    prefill: str | None = Field(None, description="text with which its answers begin")
    request: RequestDefaults = Field(RequestDefaults(), description="as `[request]`, for this intent")
    checks: tuple[AnyCheck, ...] = Field((), description="what a valid answer passes")


class CleanData(Data):
    """Removal of what a model writes around an answer."""

    mode: Literal["off", "report", "apply"] = Field(
        "off", description="`report` counts the characters, `apply` removes them from answers that are not streamed"
    )


class ProfileData(Data):
    """A profile's file, version 2."""

    version: Literal[2]
    default_intent: str = Field("other", description="the intent of jobs that no phrase identifies")
    request: RequestDefaults = RequestDefaults()
    judge: JudgeData = JudgeData()
    lists: dict[str, str] = Field({}, description="choices by name, which stand in patterns as `{name}`")
    policies: tuple[PolicyData, ...] = ()
    answered: AnsweredData = AnsweredData()
    intents: tuple[IntentData, ...] = Field(
        (IntentData(name="other"),), min_length=1, description="topics that are answered; without any, all are `other`"
    )
    clean: CleanData = CleanData()
    tasks: tuple[Task, ...] = Field((), description="requests by name, whose answers are JSON")

    @model_validator(mode="before")
    @classmethod
    def _named_lists(cls, data: Any) -> Any:
        """The patterns with the choices that `{name}` stands for."""
        lists = data.get("lists") if isinstance(data, dict) else None
        if not isinstance(lists, dict) or not all(isinstance(choices, str) for choices in lists.values()):
            return data
        return {key: _with_lists(data[key], lists) if key in ("policies", "answered") else data[key] for key in data}


_PLAIN = ("name", "message", "topic")
"""Keys of a policy that hold no patterns."""


def _with_lists(value: Any, lists: dict[str, str]) -> Any:
    """What stands in a file, its patterns with the choices of the lists that they name."""
    if isinstance(value, dict):
        return {key: one if key in _PLAIN else _with_lists(one, lists) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_lists(one, lists) for one in value]
    return patterns.named(value, lists) if isinstance(value, str) else value
