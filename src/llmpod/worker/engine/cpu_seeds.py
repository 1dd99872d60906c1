"""Seeds on a CPU: an extension of vLLM's worker, whose own process asks this module for it (worker_extension_cls).

Where a step's token budget cuts a prompt, vLLM discards the token that it sampled for the request, and sets the
request's random generator back by an offset (gpu_model_runner.py, `_bookkeeping_sync`). The generators of a CPU have
none: the engine died of it. Here a request's generator is not there in a step whose token is discarded.
"""

from __future__ import annotations

import functools
from typing import Any


def __getattr__(name: str) -> Any:
    """`Extension`, whose only effect is that of asking for it: importing this module must not import vLLM."""
    if name != "Extension":
        raise AttributeError(name)
    return _extension()


@functools.cache
def _extension() -> type:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    _hide_generators_of_discarded_tokens(CPUModelRunner)
    return type("Extension", (), {})


def _hide_generators_of_discarded_tokens(runner: Any) -> None:
    """Change `runner`, vLLM's CPUModelRunner class."""
    sample_tokens = runner.sample_tokens

    @functools.wraps(sample_tokens)
    def sample(self: Any, *args: Any, **named: Any) -> Any:
        batch = self.input_batch
        discarded = self.discard_request_mask.np[: batch.num_reqs].nonzero()[0]
        # Taken out of the dictionary itself, which the step's sampling parameters refer to.
        kept = {row: batch.generators.pop(row) for row in map(int, discarded) if row in batch.generators}
        try:
            return sample_tokens(self, *args, **named)
        finally:
            batch.generators.update(kept)

    runner.sample_tokens = sample
