"""The running vLLM engine. engine/start/engine_start.py makes it."""

from __future__ import annotations

from llmpod.worker.engine.app.application import Application
from llmpod.worker.engine.generation import Generation, Loaded
from llmpod.worker.engine.start.report import Started
from llmpod.worker.errors import Code, JobError


class Engine(Generation):
    """An engine that answers jobs: native requests, and routes through `application`."""

    def __init__(self, loaded: Loaded, application: Application, started: Started) -> None:
        super().__init__(loaded)
        self.application = application
        self.started = started
        self.frame = loaded.prompts.frame()  # the chat template's own text around a native job's messages

    def shutdown(self) -> None:
        """End the engine's processes."""
        self._constraints.shutdown()
        self._llm.shutdown()

    @property
    def kv_cache_tokens(self) -> int | None:
        """Capacity of the KV cache in tokens, if this vLLM reports it."""
        cache = self._llm.vllm_config.cache_config
        return cache.num_gpu_blocks * cache.block_size if cache.num_gpu_blocks else None

    @property
    def traces(self) -> bool:
        """Whether vLLM exports traces: OTLP_TRACES_ENDPOINT is set."""
        return self._llm.observability_config.otlp_traces_endpoint is not None

    @property
    def unfinished(self) -> int:
        """Unfinished requests in the engine; 0 at rest."""
        return int(self._llm.output_processor.get_num_unfinished_requests())

    @property
    def last_step(self) -> float:
        """When the engine last finished a step, in monotonic seconds."""
        return self._steps.last

    @property
    def dead(self) -> bool:
        """Whether the engine's processes have failed. This is final."""
        return bool(self._llm.errored)

    async def respond(self) -> None:
        """Return when the engine's process has answered a probe, which it does between two steps.

        Raises:
            JobError: the engine is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.is_sleeping()
        except EngineDeadError:
            raise JobError(Code.ENGINE_DEAD, "The engine died.") from None
