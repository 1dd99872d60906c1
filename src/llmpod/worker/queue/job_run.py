"""Run of one job: sends its replies to RunPod as stream chunks and one result, however the job ends.

A job that is not streamed costs one call, and its output is the reply itself. A streamed job costs a call per chunk and
one for the result: a list, as the SDK makes it of a generator's yields, with adjacent chunks merged.
"""

from __future__ import annotations

import time
from contextlib import aclosing, closing
from typing import Any

import orjson

from llmpod.worker.errors import JobError
from llmpod.worker.jobs import native_reply
from llmpod.worker.jobs.interruption import Interruption
from llmpod.worker.jobs.stream_rate import Pace
from llmpod.worker.queue.result_delivery import Delivery
from llmpod.worker.queue.stream_chunks import Deltas, Item, merge, split
from llmpod.worker.worker import Worker

LAST_CHUNK_PATIENCE_S = 3.0
"""How long the chunk with a stream's error is retried; the result that follows has the error, too."""
HURRIED_PATIENCE_S = 8.0
"""How long results are retried when the worker is about to exit."""


class JobRun:
    """A running job. `run` is its task's body; cancelling that task is how RunPod's stop ends the job."""

    def __init__(
        self, job: dict[str, Any], worker: Worker, delivery: Delivery, pace: Pace, *, stop_pod: bool = False
    ) -> None:
        """`stop_pod`: ask RunPod for a fresh worker with the result (the SDK's `refresh_worker`)."""
        self.id = str(job["id"])
        self.record = worker.record(job)
        self.record.delivers = True
        self._job = job
        self._worker = worker
        self._delivery = delivery
        self._pace = pace
        self._extra = {"stopPod": True} if stop_pod else {}
        self._interruption = Interruption(self.record)
        self._hurried = False
        self._sent_events = False  # whether the stream consists of strings
        self._whole: list[Item] = []
        self._failing_since: float | None = None  # since when no chunk has arrived

    def interrupt(self, error: JobError) -> None:
        """Stop the job and report `error`. Does nothing once the result is being sent."""
        self._hurried = True
        self._interruption.interrupt(error)

    async def run(self) -> None:
        """Run the job and deliver its result."""
        try:
            await self._run()
        finally:
            self.record.close()

    async def _run(self) -> None:
        try:
            result = await self._interruption.run(self._work, self._worker.settings.max_job_seconds)
        except JobError as error:
            self.record.cut_short()
            if self.record.stream:
                await self._delivery.chunk(self.id, self._final_chunk(error), patience_s=LAST_CHUNK_PATIENCE_S)
            result = {"error": error.as_json(self.id)}
        await self._delivery.result(
            self.id,
            self._extra | result,
            stream=self.record.stream,
            patience_s=HURRIED_PATIENCE_S if self._hurried else None,
        )

    async def _work(self) -> dict[str, Any]:
        replies = self._worker.handle(self._job, self.record)
        with closing(self._pace.stream()) as turns:
            async with aclosing(Deltas(replies)) as deltas:
                while (item := await deltas.next()) is not None:
                    if isinstance(item, dict) and isinstance(item.get("error"), str):
                        return {"error": item["error"]}
                    if not self.record.stream:
                        self._keep(item)
                        continue
                    turns.take()
                    if (unsent := await self._send(item)) is not None:
                        deltas.carry(unsent)
                    if not self.record.generated:
                        await turns.next()
        if self.record.stream:
            return {"output": self._whole}
        return {"output": self._whole[0] if len(self._whole) == 1 else self._whole}

    async def _send(self, item: Item) -> Item | None:
        """Post an item; returns the part that did not arrive. After RESULT_DELIVERY_TIMEOUT only the result has it."""
        self._sent_events = isinstance(item, str)
        parts = list(split(item))
        for index, part in enumerate(parts):
            if await self._delivery.chunk(self.id, part):
                self._failing_since = None
            elif not self._given_up():
                unsent = part
                for rest in parts[index + 1 :]:
                    unsent = merge(unsent, rest) or unsent
                return unsent
            if self._worker.settings.return_aggregate_stream:
                self._keep(part)
        return None

    def _given_up(self) -> bool:
        """Whether no chunk has arrived for so long that the stream counts as broken."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        return now - self._failing_since >= self._worker.settings.result_delivery_timeout

    def _keep(self, item: Item) -> None:
        """Add an item to the result."""
        merged = merge(self._whole[-1], item) if self._whole else None
        if merged is not None:
            self._whole[-1] = merged
        else:
            self._whole.append(item)

    def _final_chunk(self, error: JobError) -> Item:
        failure = error.as_dict(self.id)
        if self._sent_events:
            return f"data: {orjson.dumps({'error': failure}, default=str).decode()}\n\n"
        return native_reply.stream_error(failure)
