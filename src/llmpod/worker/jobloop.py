"""RunPod's side of the worker: the SDK's job loop, with the engine started inside it.

The SDK runs its fitness checks in one event loop and the jobs in another, and vLLM's engine lives in the loop that
started it. So the loop's `run` is extended: start the engine, then take jobs, then shut the engine down.
tests/worker/test_sdk_contract.py names the parts of the SDK that this leans on.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, NoReturn

import runpod
from runpod.serverless.modules import rp_logger, rp_scale

from llmpod.worker.events import Emit
from llmpod.worker.handler import Worker


class EngineJobScaler(rp_scale.JobScaler):  # type: ignore[misc] # the SDK is untyped
    """The SDK's loop around a worker whose engine starts and ends with it."""

    worker: Worker
    engine_died = False

    async def run(self) -> None:
        """Start the engine, serve jobs until shutdown, end the engine."""
        signal.signal(signal.SIGTERM, _stop_loading)
        try:
            await self.worker.engine.start()
            signal.signal(signal.SIGTERM, self.handle_shutdown)
            self.worker.on_engine_death = self._die
            await super().run()
        finally:
            self.worker.engine.shutdown()
        if self.engine_died:
            raise SystemExit(1)

    def _die(self) -> None:
        """Without an engine every further job would fail at once: take no more, and let RunPod replace the worker."""
        if not self.engine_died:
            self.engine_died = True
            self.worker.emit(
                "fatal",
                level="error",
                cause="The engine died.",
                cure="RunPod replaces this worker; the engine's own log lines above have the reason.",
            )
            self.kill_worker()


def serve(worker: Worker) -> int:
    """Serve jobs until RunPod stops the worker. The process's exit status.

    Raises:
        StartError: the engine could not be started.
    """
    scaler = type("Scaler", (EngineJobScaler,), {"worker": worker})
    rp_scale.JobScaler = scaler
    quiet_sdk(worker.emit, worker.settings.log_level)
    runpod.serverless.start(
        {
            "handler": worker.handle,
            "concurrency_modifier": lambda current: worker.concurrency,
            "return_aggregate_stream": worker.settings.return_aggregate_stream,
        }
    )
    return 0


def quiet_sdk(emit: Emit, level: str) -> None:
    """The SDK's lines become events. By default it logs every chunk of every answer, at DEBUG."""
    severities = {"debug": 1, "info": 2, "warning": 3, "error": 4}
    threshold = severities[level]

    def log(self: Any, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        severity = {"WARN": "warning"}.get(message_level, message_level.lower())
        if severities.get(severity, 2) >= threshold:
            emit("log", level=severity, logger="runpod", message=str(message)[:1000], request_id=job_id)

    rp_logger.RunPodLogger.log = log
    rp_logger.RunPodLogger.level = {"warning": "WARN"}.get(level, level.upper())


def _stop_loading(signum: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM while the model loads: nothing was taken, so nothing is lost by leaving at once."""
    raise SystemExit(0)
