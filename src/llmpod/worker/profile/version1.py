"""Profile files of version 1, which are converted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmpod.worker.profile import checks, patterns
from llmpod.worker.profile.checks import AnyCheck
from llmpod.worker.profile.data import Data, IntentData, PolicyData, ProfileData


class _ChecksV1(Data):
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


class _IntentV1(Data):
    name: str
    phrases: tuple[str, ...] = ()
    blocked: str | None = None
    checks: _ChecksV1 = _ChecksV1()


class ProfileV1(Data):
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
                        "certain": ((patterns.literals(intent.phrases),),) if intent.phrases else (),
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
