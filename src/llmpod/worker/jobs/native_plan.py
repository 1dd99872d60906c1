"""What a profile makes of a native job: its intent, system message, defaults and limits. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmpod.worker.jobs import limits
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.jobs.limits import MaxTokens
from llmpod.worker.jobs.native_reply import Answer, Reply
from llmpod.worker.profile.answers import assess
from llmpod.worker.profile.file import IntentData, Profile
from llmpod.worker.settings import Settings


@dataclass(frozen=True)
class Plan:
    """A native job with the profile's defaults in it."""

    request: NativeRequest
    max_tokens: MaxTokens
    intent: IntentData | None = None  # None: no profile
    cleaning: str = "off"

    @property
    def validates(self) -> bool:
        """Whether the intent's checks are applied to the answer."""
        return self.intent is not None and self.request.enable_validation is not False

    def validation(self, answer: Answer) -> Reply | None:
        """The reply's `validation`, of the texts that are returned; cleaning changes those of a whole reply."""
        if self.intent is None or not self.validates:
            unchecked = {"valid": None, "issues": ["not checked: this worker has no PROFILE"]}
            return unchecked if self.request.enable_validation else None
        assessed = assess(
            self.intent.name,
            self.intent.checks,
            answer.texts,
            answer.finish_reasons,
            reports=self.cleaning == "report" or (self.cleaning == "apply" and self.request.stream),
            applies=self.cleaning == "apply" and not self.request.stream,
        )
        answer.texts = assessed.texts
        return assessed.validation


def plan(request: NativeRequest, settings: Settings, profile: Profile | None) -> Plan:
    """Apply a profile's defaults to a native job; the client's own values win, within the limits.

    A conversation that brings its own system message, and a prompt that is sent as it is, get none of the profile's;
    an answer with a structured output is not begun for the model.
    """
    if profile is None:
        return Plan(request, limits.clamp_max_tokens(request.max_tokens, settings))
    too_long = 0 < settings.max_prompt_chars < request.chars  # and about to be refused
    intent = profile.default if too_long else profile.intent_of(request.texts)
    given = {name: value for name, value in request.sampling.items() if value is not None}
    bare = not request.apply_chat_template or any(
        message.role in ("system", "developer") for message in request.messages or ()
    )
    planned = replace(
        request,
        sampling=profile.sampling(intent) | given,
        system=None if bare else intent.system,
        prefill=None if bare or limits.constrained(given) else intent.prefill,
    )
    max_tokens = limits.clamp_max_tokens(
        request.max_tokens, settings, usual=profile.max_tokens(intent), cap=intent.request.max_tokens
    )
    return Plan(planned, max_tokens, intent, profile.data.clean.mode)
