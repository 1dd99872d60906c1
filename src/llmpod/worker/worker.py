"""Worker: runs a job from RunPod's job dict to the last chunk.

`Worker.handle` is the generator that the SDK iterates: inputs -> limits -> policy -> engine -> replies, with one
`start` and one `end` event around it. The rules are in the modules it calls.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.policy_judge import PolicyJudge
from llmpod.worker.engine.prompt_check import PromptCheck
from llmpod.worker.errors import Code, JobError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs import bounds, capacity, inputs, limits, metering, native_plan, native_reply, slots
from llmpod.worker.jobs.job_log import JobRecord
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.profile import file
from llmpod.worker.profile.file import Profile
from llmpod.worker.routes import routes, status
from llmpod.worker.routes.answer import Reply
from llmpod.worker.settings import Settings


class Worker:
    """Answers jobs with one engine."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        emit: Emit,
        metrics: Metrics | None = None,
        profile: Profile | None = None,
    ) -> None:
        """`metrics`: where the worker's events are counted; its own, read by nobody, if none are given.

        `profile`: PROFILE, if it has been loaded.
        """
        self.settings, self.engine = settings, engine
        self.metrics = metrics or Metrics()
        self.emit = emit = self.metrics.tap(emit)
        self.profile = profile or file.of(settings.profile)
        self.judge = PolicyJudge.of(engine, self.profile, emit)
        self.routes = routes.Routes(settings, engine, self.profile, self.judge, emit, self.status)
        # Requests to keep in the engine: those it decodes together, and some more so that it never waits for one.
        most_tokens = self.profile.most_tokens() if self.profile else 0
        self.engine_capacity = capacity.engine_capacity(engine, settings, most_tokens)
        self.slots = slots.Slots(self.engine_capacity, settings.max_queue_wait, settings.max_queue_size)
        self.metrics.follow_all("llmpod_slots", lambda state: getattr(self.slots, state))
        self.concurrency = settings.max_concurrency or self.engine_capacity  # jobs to hold at once
        self.on_engine_death: Callable[[], None] = lambda: None
        self.draining = False  # no more jobs are taken

    def status(self) -> dict[str, Any]:
        """What /status answers."""
        return status.reply(self.engine, self.slots, draining=self.draining, concurrency=self.concurrency)

    def record(self, job: dict[str, Any]) -> JobRecord:
        """A new record for `handle`, for callers that read it or interrupt the job."""
        traced = self.engine.model_name if self.engine.traces else None
        return JobRecord(str(job.get("id")), self.emit, log_prompts=self.settings.log_prompts, traced=traced)

    async def handle(self, job: dict[str, Any], record: JobRecord | None = None) -> AsyncGenerator[Reply, None]:
        """Yield the replies of one job: one, or one per chunk when it is streamed (as text on OpenAI's routes).

        A failure is a last reply whose `error` is a JSON string; the SDK makes the job FAILED with it. Cancellation
        reaches this generator as CancelledError while it awaits, or as GeneratorExit while the SDK sends a chunk.
        """
        record = record or self.record(job)
        metering.current_meter.set(record.meter.begin(self.settings, record.id, self.slots.take))
        try:
            async with aclosing(self._answer(job.get("input"), record)) as replies:
                async for reply in replies:
                    yield reply
            record.end("ok")
            return
        except JobError as error:
            failed = error
        except (asyncio.CancelledError, GeneratorExit):
            record.cut_short()
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a job: the client gets a code, the log the traceback
            self.emit("bug", level="error", request_id=record.id, traceback=traceback.format_exc())
            failed = JobError(Code.INTERNAL_ERROR, f"The worker failed to process this job ({type(error).__name__}).")
        if failed.code is Code.OVERLOADED:  # also where vLLM's own limits refused it
            failed.details = self.slots.load() | failed.details
        failed = routes.explain(failed, job.get("input"))
        record.fail(failed)
        if failed.code is Code.ENGINE_DEAD:
            self.on_engine_death()
        for reply in routes.final_replies(failed, record, model=self.engine.model_name):
            yield reply

    async def _answer(self, job_input: object, record: JobRecord) -> AsyncGenerator[Reply, None]:
        record.size = await bounds.check(job_input, self.settings.max_job_values)
        record.meter.small = not record.size.large
        request = await record.size.aside(inputs.parse, job_input, self.engine.sampling_names)
        if isinstance(request, inputs.RouteRequest):
            async with aclosing(self.routes.answer(request, record)) as replies:
                async for part in replies:
                    yield part
            return
        plan = await record.size.aside(native_plan.plan, request, self.settings, self.profile, self.engine.context)
        record.start(plan.request, plan.max_tokens, validation_enabled=plan.validates)
        check = PromptCheck(self.settings, self.profile, self.judge, self.engine.frame, request.prompt_field, record)
        limits.check(request, self.settings, self.engine.context)  # the client's part: the profile's is the operator's
        request, max_tokens = plan.request, plan.max_tokens
        record.intent = plan.intent.name if plan.intent else None
        await record.size.aside(check.check_texts, *request.texts)
        prompt_ids = await self.engine.render(request)
        max_tokens = record.max_tokens = limits.fit_context(max_tokens, len(prompt_ids), self.engine.max_model_len)
        params = self.engine.sampling(request.sampling, max_tokens.effective, stream=request.stream)
        await self.engine.constrain(params)
        answer = native_reply.Answer(request.prefill)
        slot = record.meter.slot(int(request.sampling.get("n") or 1))
        async with slot, aclosing(self.engine.generate(prompt_ids, params, record.id)) as steps:
            async for step in steps:
                reply = answer.add(step.deltas)
                if not step.finished and native_reply.says_something(reply):
                    yield reply
        verdict = await plan.verdict(answer)
        validation = verdict.validation if verdict else plan.validation(answer)
        record.finish(step, answer, validation)
        reply = answer.returned(reply) if validation and validation.get("sanitized") else reply
        limits.check_whole(request, answer.finish_reasons, max_tokens, reply, tokens=step.usage.completion_tokens)
        reply |= verdict.enforce(reply) if verdict else {}
        ending = native_reply.ending(request, answer, step.usage, max_tokens, self.engine.model_name, record.id)
        yield reply | ending | ({"validation": validation} if validation else {})
