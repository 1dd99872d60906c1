"""Interruption of a running job: a time limit, shutdown, a dead engine or a lost client ends it with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.job_log import JobRecord

Result = TypeVar("Result")


class Interruption:
    """Runs the work of one job in the current task, until it ends or is interrupted."""

    def __init__(self, record: JobRecord) -> None:
        self._record = record
        self._scope = asyncio.timeout(None)
        self._working = False

    def interrupt(self, error: JobError) -> None:
        """Stop the work, whose `run` then raises `error`. The first interruption counts; none after the work's end."""
        if self._record.interruption is None:
            self._record.interruption = error
            if self._working:
                self._scope.reschedule(asyncio.get_running_loop().time())

    async def run(self, work: Callable[[], Awaitable[Result]], limit_s: float) -> Result:
        """Return the result of `work`. `limit_s`: MAX_JOB_SECONDS; 0: no limit.

        Raises:
            JobError: the job was interrupted, or took longer than `limit_s`.
        """
        timeout = JobError(Code.TIMEOUT, f"The job was not finished within MAX_JOB_SECONDS ({limit_s:g}).")
        alarm = asyncio.get_running_loop().call_later(limit_s, self.interrupt, timeout) if limit_s else None
        try:
            async with self._scope:
                self._working = True
                try:
                    if self._record.interruption is not None:
                        raise TimeoutError
                    return await work()
                finally:
                    self._working = False
        except TimeoutError:
            if self._record.interruption is None:
                raise
            raise self._record.interruption from None
        finally:
            if alarm is not None:
                alarm.cancel()
