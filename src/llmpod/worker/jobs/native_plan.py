"""What a profile makes of a native job: its intent, system message, defaults and limits. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.jobs.limits import Context, MaxTokens
from llmpod.worker.jobs.native_reply import Answer, Reply
from llmpod.worker.profile.answers import assess
from llmpod.worker.profile.data import IntentData
from llmpod.worker.profile.file import Profile
from llmpod.worker.profile.tasks.task import Task, Verdict
from llmpod.worker.settings import Settings


@dataclass(frozen=True)
class Plan:
    """A native job with the profile's defaults in it."""

    request: NativeRequest
    max_tokens: MaxTokens
    intent: IntentData | None = None  # None: no profile, or a task
    task: Task | None = None
    cleaning: str = "off"

    @property
    def validates(self) -> bool:
        """Whether the answer is checked. A client can turn off an intent's checks, but not a task's rules."""
        return self.task is not None or (self.intent is not None and self.request.enable_validation is not False)

    async def verdict(self, answer: Answer) -> Verdict | None:
        """The task's verdict on its one answer; None without a task."""
        return await self.task.answer(answer.texts[0], answer.finish_reasons.get(0)) if self.task else None

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


def plan(request: NativeRequest, settings: Settings, profile: Profile | None, context: Context) -> Plan:
    """Apply a profile's defaults to a native job; the client's own values win, within the limits.

    A conversation that brings its own system message, and a prompt that is sent as it is, get none of the profile's;
    an answer with a structured output is not begun for the model.

    Raises:
        JobError: the job names a task that there is not, or asks for what a task does not give.
    """
    if request.task is not None:
        return _task(request, request.task, settings, profile)
    if profile is None:
        return Plan(request, limits.clamp_max_tokens(request.max_tokens, settings))
    limits_of_prompt = settings.max_prompt_chars, context.chars
    too_long = any(0 < most < request.chars for most in limits_of_prompt)  # and about to be refused
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
    return Plan(planned, max_tokens, intent, cleaning=profile.data.clean.mode)


def _task(request: NativeRequest, name: str, settings: Settings, profile: Profile | None) -> Plan:
    tasks = profile.tasks if profile else {}
    if profile is None or name not in tasks:
        there = f"There are {', '.join(tasks)}." if tasks else "This worker has none: its operator sets PROFILE."
        raise JobError(Code.NOT_FOUND, f"There is no task {name[:64]!r}. {there}", field="task")
    task = tasks[name]
    given = {name: value for name, value in request.sampling.items() if value is not None}
    _refuse_other_form(request, given, task)
    planned = replace(
        request, sampling=profile.data.request.sampling | task.request.sampling | given | task.form, system=task.system
    )
    most = task.request.max_tokens
    usual = most or profile.data.request.max_tokens
    return Plan(planned, limits.clamp_max_tokens(request.max_tokens, settings, usual=usual, cap=most), task=task)


def _refuse_other_form(request: NativeRequest, given: dict[str, Any], task: Task) -> None:
    """A task gives one object of one form, and its system message is the operator's."""
    for name, harmless in (("structured_outputs", {}), ("n", 1)):
        if given.get(name, harmless) != harmless:
            field = f"sampling_params.{name}"
            raise JobError(Code.INVALID_INPUT, f"{field} is the task's, which gives one object.", field=field)
    if task.system is None:
        return
    if not request.apply_chat_template:
        field = "apply_chat_template"
        raise JobError(Code.INVALID_INPUT, "A task with a system message needs the chat template.", field=field)
    if any(message.role in ("system", "developer") for message in request.messages or ()):
        raise JobError(Code.INVALID_INPUT, "The task has a system message: leave yours out.", field="messages")
