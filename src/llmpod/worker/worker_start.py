"""Start of a worker: what is known and checked before its engine runs."""

from __future__ import annotations

from collections.abc import Mapping

from llmpod.worker.engine.start.engine_start import EngineStart
from llmpod.worker.event_log import Emit
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.profile import file
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker


class WorkerStart:
    """One start of a worker."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], emit: Emit, metrics: Metrics) -> None:
        """`environment`: variables that are not settings, in which engine arguments are looked up.

        Raises:
            StartError: something is wrong that shows without vLLM.
        """
        self.settings = settings
        self.emit = metrics.tap(emit)
        self._log = emit
        self._metrics = metrics
        self._engine_start = EngineStart(settings, environment, self.emit)
        self._profile = file.of(settings.profile)

    async def run(self) -> Worker:
        """Start the engine. Blocks the event loop while the model loads.

        Raises:
            StartError: with the cause and the cure.
        """
        engine = await self._engine_start.run(*file.checked_by_engine(self._profile))
        return Worker(self.settings, engine, self._log, self._metrics, self._profile)

    async def settle(self) -> None:
        """Wait for what `run` left to be done beside the first jobs."""
        await self._engine_start.settle()
