"""Length and policy checks on rendered prompts, whatever field of the job they come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from llmpod.worker.engine.frame import Frame
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import limits
from llmpod.worker.jobs.job_log import JobRecord
from llmpod.worker.jobs.metering import JobMeter, PendingCheck
from llmpod.worker.profile.file import Profile
from llmpod.worker.profile.policy import By, Policy, Verdict
from llmpod.worker.settings import Settings

Judge = Callable[[str, JobMeter, str], Awaitable[bool]]
"""Whether the model holds that a text must be blocked; of a job's meter and id."""


class PromptCheck:
    """Checks the visible text (`Prompts.visible`) of each rendered prompt of one job."""

    def __init__(
        self,
        settings: Settings,
        profile: Profile | None,
        judge: Judge | None,
        frame: Frame,
        field: str,
        record: JobRecord,
        *,
        tools: bool = False,
        adds_up: bool = True,
    ) -> None:
        """`frame`: what the chat template writes by itself; `field`: where the client's prompt stands, for messages.

        `judge`: is asked about what the profile's words leave open; None: that is blocked.
        `tools`: the job has some. `adds_up`: its prompts do not repeat one text, so that the limit is for all together.
        """
        self._settings = settings
        self._profile = profile
        self._judge = judge
        self._frame = frame
        self._allowance = frame.between + (frame.tools if tools else 0)
        self._field = field
        self._record = record
        self._adds_up = adds_up
        self._chars = 0  # of all prompts so far, beyond the allowance
        self._suspected: Verdict | None = None  # in the job's texts, before they were rendered
        if settings.max_prompt_chars or profile is not None:
            record.meter.judge = self

    def __call__(self, text: str) -> PendingCheck | None:
        """Check one prompt; returns the question to the judge that is left, if there is one.

        Raises:
            JobError: prompt_too_long, or content_filter.
        """
        text = self._frame.without(text)
        chars = max(0, len(text) - self._allowance)
        self._chars = self._chars + chars if self._adds_up else chars
        limits.check_chars(self._chars, self._settings, field=self._field)
        suspected = self._verdict(text) or self._suspected
        if self._judge is None or (suspected is None and not self._asks_always):
            return None
        return partial(self._ask, self._judge, text, suspected)

    def check_texts(self, *texts: str) -> None:
        """Check the texts of a job before they are rendered: also what is cut between two of them is found.

        Raises:
            JobError: content_filter.
        """
        self._suspected = self._verdict(*texts)

    @property
    def _asks_always(self) -> bool:
        return self._profile is not None and self._profile.data.judge.mode == "always"

    def _verdict(self, *texts: str) -> Verdict | None:
        """The verdict that the judge has to confirm; what is certain, or has no judge, is blocked."""
        found = self._profile.verdict(texts) if self._profile is not None else None
        if found is not None and (found.by == "certain" or self._judge is None):
            raise self._blocked(found.policy, found.by)
        return found

    async def _ask(self, judge: Judge, text: str, suspected: Verdict | None) -> None:
        if await judge(text, self._record.meter, self._record.id):
            assert self._profile is not None
            policy = suspected.policy if suspected else Policy("judge", self._profile.data.judge.message)
            raise self._blocked(policy, "judge")

    def _blocked(self, policy: Policy, by: By) -> JobError:
        self._record.intent = policy.name
        self._record.policy = {"name": policy.name, "by": by}
        return JobError(Code.BLOCKED, policy.message, field=self._field, intent=policy.name)
