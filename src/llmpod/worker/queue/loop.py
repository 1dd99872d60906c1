"""Job loop: starts the engine, polls RunPod for jobs, runs them concurrently, and drains at shutdown.

The SDK stays the entry point (`runpod.serverless.start`: fitness checks, heartbeat, arguments); its JobScaler is
replaced by a subclass. The engine starts inside the loop that serves jobs (lifecycle.py), because vLLM's engine belongs
to the event loop that started it and the SDK runs its fitness checks in another. sdk.py lists the parts of the SDK that
are used.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from types import FrameType
from typing import Any, NoReturn

import runpod
from runpod.serverless.modules import rp_scale

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.stream_rate import Pace
from llmpod.worker.lifecycle import Lifecycle
from llmpod.worker.queue import sdk
from llmpod.worker.queue.job_run import HURRIED_PATIENCE_S, JobRun
from llmpod.worker.queue.polling import HALF_CLOSE_S, QUICK_S, Backoff, Poller
from llmpod.worker.queue.result_delivery import Delivery
from llmpod.worker.queue.stops import EarlyStops
from llmpod.worker.worker import Worker
from llmpod.worker.worker_start import WorkerStart

SdkJobScaler = rp_scale.JobScaler
"""The SDK's own class: `serve` puts ours in its place."""


class EngineJobScaler(Lifecycle, rp_scale.JobScaler):  # type: ignore[misc] # the SDK is untyped
    """The SDK's own job loop, with an engine that starts and ends with it.

    The SDK makes it of its configuration alone, so `worker_start` is set on a subclass.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        SdkJobScaler.__init__(self, config)
        Lifecycle.__init__(self, self.worker_start)

    def start(self) -> None:
        """Install signal handlers and run the loop; called by the SDK. Afterwards this class may end the process."""
        self.owns_process = True
        super().start()

    async def serve(self) -> None:
        """Poll for jobs and run them until shutdown."""
        self.config["handler"] = self.worker.handle
        self.concurrency_modifier = lambda current: self.worker.concurrency
        await SdkJobScaler.run(self)

    def stop(self) -> None:
        """Stop polling."""
        self.kill_worker()

    def kill_worker(self) -> None:
        """Take no more jobs. Also called by the SDK."""
        self.worker.draining = True
        super().kill_worker()


class EventJobScaler(EngineJobScaler):
    """Event-driven job loop: jobs start as they arrive, results leave at once, nothing is polled inside the worker."""

    _poller: Poller
    _delivery: Delivery

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._runs: dict[str, JobRun] = {}
        self._stops = EarlyStops()
        settings = self.worker_start.settings
        self._pace = Pace(settings.min_stream_gap_ms / 1000, settings.max_stream_chunks_per_s)

    async def serve(self) -> None:
        """Poll for jobs and run them until shutdown; then drain."""
        settings = self.worker.settings
        self.current_concurrency = self.worker.concurrency
        stream_url, done_url = sdk.urls()
        self._poller = Poller(
            lambda: self.current_concurrency - len(self._runs),
            self.jobs_fetcher,
            self._begin,
            self.worker.emit,
            self._shutdown_event,
            timeout_s=self.jobs_fetcher_timeout,
        )
        async with sdk.open_session() as session:
            self._delivery = Delivery(
                session,
                self.worker.emit,
                self.worker.metrics,
                stream_url=stream_url,
                done_url=done_url,
                timeout_s=settings.result_delivery_timeout,
            )
            taking = asyncio.create_task(self._poller.run())
            stopping = asyncio.create_task(self._watch_stops(session))
            ending = asyncio.create_task(self._shutdown_event.wait())
            try:
                await asyncio.wait((taking, ending), return_when=asyncio.FIRST_COMPLETED)
                await self._drain(taking)
            finally:
                await _end(taking, stopping, ending, *self.jobs_tasks.values())
        if taking.done() and not taking.cancelled() and (bug := taking.exception()):
            raise bug

    def fail(self, failure: JobError) -> None:
        """As the base class; running jobs fail at once, so that they can be retried on another worker."""
        super().fail(failure)
        for run in self._runs.values():
            run.interrupt(failure)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _begin(self, job: Any) -> None:
        job_id = job.get("id") if isinstance(job, dict) else None
        if not isinstance(job_id, str) or not job_id or not _is_unicode(job_id):
            self.worker.emit("take_failed", level="warning", cause="RunPod handed out something that is not a job.")
            return
        if job_id in self._runs:  # RunPod assumed it lost; it is running, and is reported once
            self.worker.emit("job_repeated", level="warning", request_id=job_id)
            return
        run = JobRun(job, self.worker, self._delivery, self._pace, stop_pod=bool(self.config.get("refresh_worker")))
        if self._stops.obey(job_id, time.monotonic()):
            run.interrupt(JobError(Code.CANCELLED, "RunPod stopped this job before it handed it to the worker."))
        elif self.failure is not None:
            run.interrupt(self.failure)
        self._runs[job_id] = run
        self.job_progress.add(job_id)  # what the heartbeat reports
        task = asyncio.create_task(self._run(run))
        self.jobs_tasks[job_id] = task
        task.add_done_callback(functools.partial(self._ended, job_id))

    async def _run(self, run: JobRun) -> None:
        await run.run()
        if self.config.get("refresh_worker"):
            self.kill_worker()

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._runs[job_id]
        del self.jobs_tasks[job_id]
        self.job_progress.remove(job_id)
        self._stops.has_ended(job_id, time.monotonic())
        self._poller.wake()
        if not task.cancelled() and (bug := task.exception()) is not None:
            self.worker.emit("bug", level="error", request_id=job_id, traceback=repr(bug))

    # -- stops ---------------------------------------------------------------------------------------------------------

    async def _watch_stops(self, session: Any) -> None:
        if sdk.stop_url() is None:
            self.worker.emit("no_stop_channel", level="warning", note="RunPod's take address is of an unknown form.")
            return
        backoff = Backoff()
        while True:
            asked = time.monotonic()
            try:
                async with asyncio.timeout(self.stop_signals_fetcher_timeout):
                    job_ids = await self.stop_signals_fetcher(session)
            except Exception as error:  # noqa: BLE001 - as for job-take
                backoff.lengthen(at_least_s=1.0 if isinstance(error, sdk.TooManyRequests) else 0.0)
            else:
                for job_id in job_ids:
                    self._stop(job_id)
                if job_ids or time.monotonic() - asked > QUICK_S:
                    backoff.reset()
                else:
                    backoff.lengthen()
            await backoff.wait(self._shutdown_event)

    def _stop(self, job_id: str) -> None:
        """Stop a job. A stop can arrive before its job: then it is remembered for a while."""
        if (task := self.jobs_tasks.get(job_id)) is not None:
            task.cancel()
        else:
            self._stops.remember(job_id, time.monotonic())

    # -- shutdown ------------------------------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """Stop polling. Also called by the SDK."""
        super().kill_worker()
        self._poller.half_close()

    async def _drain(self, taking: asyncio.Task[None]) -> None:
        """Let running jobs finish for DRAIN_SECONDS, fail the rest as retryable, and deliver all results.

        This includes a job that the last poll still returned.
        """
        self.kill_worker()
        settings = self.worker.settings
        drain_s = 0.0 if self.failure is not None else settings.drain_seconds
        if self._runs:
            self.worker.emit("draining", jobs=len(self._runs), seconds=drain_s)
        deadline = time.monotonic() + drain_s
        await asyncio.wait((taking,), timeout=max(HALF_CLOSE_S, drain_s))
        while self._runs and (left := deadline - time.monotonic()) > 0 and self.failure is None:
            await asyncio.wait(self.jobs_tasks.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        stopping = JobError(Code.WORKER_STOPPING, "RunPod stopped this worker before the job was finished.")
        for run in self._runs.values():
            run.interrupt(self.failure or stopping)
        if self._runs:
            await asyncio.wait(self.jobs_tasks.values(), timeout=HURRIED_PATIENCE_S)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _is_unicode(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def _leave_before_start(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM before the SDK has installed its handlers."""
    raise SystemExit(0)


def serve(start: WorkerStart) -> int:
    """Serve jobs until RunPod stops the worker. Returns the exit status.

    Raises:
        StartError: the engine could not be started.
    """
    missing = sdk.missing()
    base: type[EngineJobScaler] = EventJobScaler
    if start.settings.job_loop == "stock":
        base = EngineJobScaler
    elif missing:
        reason = f"runpod {sdk.VERSION} does not have, in the form used here: {', '.join(missing)}"
        start.emit("job_loop", level="warning", used="stock", reason=reason, missing=missing)
        base = EngineJobScaler
    signal.signal(signal.SIGTERM, _leave_before_start)
    rp_scale.JobScaler = type("Scaler", (base,), {"worker_start": start})
    incomplete = {name.split(".")[0] for name in missing}
    if "rp_logger" not in incomplete:
        sdk.quiet(start.emit, start.settings.log_level)
    if "rp_fitness" not in incomplete:
        sdk.forgo_torch_checks()
    runpod.serverless.start(
        {
            "handler": Worker.handle,  # a worker's own when there is one
            "return_aggregate_stream": start.settings.return_aggregate_stream,
        }
    )
    return 0
