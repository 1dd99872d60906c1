"""The judge of a profile's policy: the served model is asked whether a text may be answered."""

from __future__ import annotations

import asyncio
import itertools

from llmpod.worker.engine.engine import Engine
from llmpod.worker.errors import Code, JobError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs.metering import JobMeter
from llmpod.worker.profile import judge
from llmpod.worker.profile.file import Profile

_PASSED_ON = frozenset({Code.OVERLOADED, Code.ENGINE_DEAD, Code.WORKER_STOPPING, Code.TIMEOUT})
"""Failures that are the worker's, not the question's: the job fails with them, and may be sent again."""


class PolicyJudge:
    """Asks the model about texts. An answer that fails, or is late, is "block"."""

    def __init__(self, engine: Engine, profile: Profile, emit: Emit) -> None:
        self._engine = engine
        self._topics = [policy.topic for policy in profile.policies.all]
        self._deadline_s = profile.data.judge.deadline_s
        self._emit = emit
        self._numbers = itertools.count(1)

    @classmethod
    def of(cls, engine: Engine, profile: Profile | None, emit: Emit) -> PolicyJudge | None:
        """The judge of a profile that has one."""
        if profile is None or profile.data.judge.mode == "off":
            return None
        return cls(engine, profile, emit)

    async def __call__(self, text: str, meter: JobMeter, job_id: str) -> bool:
        """Whether the model holds that `text` must be blocked. Takes one of the job's slots.

        The deadline is for the model's answer; how long a job may wait for a slot is MAX_QUEUE_WAIT.

        Raises:
            JobError: the worker is full, or its engine is dead.
        """
        turns = judge.conversation(self._topics, text)
        async with meter.judge_slot():
            try:
                async with asyncio.timeout(self._deadline_s):
                    said = await self._engine.choose(turns, judge.CHOICES, f"{job_id}-judge-{next(self._numbers)}")
            except TimeoutError:
                cause = "timeout"
            except JobError as error:
                if error.code in _PASSED_ON:
                    raise
                cause = error.failure.code
            else:
                return said != judge.NO
        self._emit("judge_failed", level="warning", request_id=job_id, cause=cause)
        return True
