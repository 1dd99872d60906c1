"""Length and policy checks on rendered prompts, whatever field of the job they come from."""

from __future__ import annotations

from llmpod.worker.engine.prompts import Frame
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits
from llmpod.worker.jobs.job_log import JobRecord
from llmpod.worker.jobs.profile import Intent, Profile
from llmpod.worker.settings import Settings


class PromptCheck:
    """Checks the visible text (`Prompts.visible`) of each rendered prompt of one job."""

    def __init__(
        self,
        settings: Settings,
        profile: Profile | None,
        frame: Frame,
        field: str,
        record: JobRecord,
        *,
        tools: bool = False,
        adds_up: bool = True,
    ) -> None:
        """`frame`: what the chat template writes by itself; `field`: where the client's prompt stands, for messages.

        `tools`: the job has some. `adds_up`: its prompts do not repeat one text, so that the limit is for all together.
        """
        self._settings = settings
        self._profile = profile
        self._frame = frame
        self._allowance = frame.between + (frame.tools if tools else 0)
        self._field = field
        self._record = record
        self._adds_up = adds_up
        self._chars = 0  # of all prompts so far, beyond the allowance
        if settings.max_prompt_chars or profile is not None:
            record.meter.judge = self

    def __call__(self, text: str) -> None:
        """Check one prompt.

        Raises:
            JobError: prompt_too_long, or what `intent_of` raises.
        """
        text = self._frame.without(text)
        chars = max(0, len(text) - self._allowance)
        self._chars = self._chars + chars if self._adds_up else chars
        limits.check_chars(self._chars, self._settings, field=self._field)
        if self._profile is not None:
            # Checked twice: a template may put a line break where a client has split a word.
            self._check_policy(self._profile.intent_of((text, text.replace("\n", ""))))

    def intent_of(self, *texts: str) -> Intent | None:
        """Set and return the intent of a client's texts; None without a profile.

        Raises:
            JobError: content_filter, where the profile blocks the intent.
        """
        if self._profile is None:
            return None
        intent = self._profile.intent_of(texts)
        self._record.intent = intent.name
        self._check_policy(intent)
        return intent

    def _check_policy(self, intent: Intent) -> None:
        if intent.blocked is not None:
            self._record.intent = intent.name
            raise JobError(Code.BLOCKED, intent.blocked, field=self._field, intent=intent.name)
