"""Output bundles: the engine's process sends the tokens of several steps of a request together.

vLLM sends what a step made at once: a message per step, from which the worker's process detokenises and counts each
token, although a whole answer is read at its end, and streams have a rate (jobs/stream_rate.py). On few cores the
engine pays for that time, too. Here vLLM's scheduler, whose class it is told by name (`scheduler_cls`), keeps tokens
until they are wanted. A first token and an end never wait. Nor do tokens on which the worker's process has to act:
those of requests with stop strings, which it looks for, or with log-probabilities.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAME = "Scheduler_every_us_"
WHOLE_S = 0.1
"""Seconds for which tokens of a whole answer wait: for metrics, and for the count of an answer that is cancelled."""
MIN_GAP_S = 0.006
"""Seconds between two bundles of a stream, whatever the rate: nobody sees more than 160 chunks a second."""
MAX_GAP_S = 1.0
"""Most seconds for which a stream's tokens wait here. The worker's process keeps a rate that is stricter."""
SHARE = 0.85
"""Of the rate of all streams. STEP and the engine's own steps make gaps longer still, so that streams stay below the
share at which the worker's process holds them back as well (FREE in jobs/stream_rate.py)."""
STEP = 0.25
"""Of the gap between two bundles of a stream: by so much one may come later, so that several share a message."""
_NOT_JOINED = ("new_logprobs", "routed_experts", "new_sampling_mask", "prefill_stats")
"""Fields of an output that belong to its tokens alone: with one of them it is sent at once."""
_COUNTS = (
    *("kv_cache_eviction_events", "connector_prefix_cache_stats", "spec_decoding_stats", "kv_connector_stats"),
    *("ec_connector_stats", "cudagraph_stats", "perf_stats"),
)
"""Fields of vLLM's statistics of a step that are added up, so that none may be left out."""


@dataclass(slots=True)
class _Request:
    """A request of which an output was sent. `due`: when the next one may be, in monotonic seconds."""

    streams: bool
    waits: bool
    due: float = 0.0
    kept: Any = None


class Bundles:
    """What is kept of the outputs that go to one process."""

    def __init__(self, chunks_per_s: float) -> None:
        """`chunks_per_s`: MAX_STREAM_CHUNKS_PER_S."""
        self._chunk_s = 1 / (SHARE * chunks_per_s)
        self._requests: dict[str, _Request] = {}
        self._streams = 0

    def ready(self, outputs: Sequence[Any], alive: Mapping[str, Any], now: float) -> list[Any]:
        """What is sent after a step.

        `outputs`: what the step made (vLLM's EngineCoreOutput). `alive`: vLLM's requests that have not ended, by id.
        """
        found: list[Any] = []
        for output in outputs:
            request = self._requests.get(output.request_id)
            if request is None:
                found.append(output)
                if output.request_id in alive:
                    self._add(output.request_id, alive[output.request_id].sampling_params, now)
                continue
            request.kept = output if request.kept is None else _joined(request.kept, output)
            if output.finish_reason is not None or not request.waits or not _can_wait(output):
                request.due = now
        for name, request in list(self._requests.items()):
            if request.kept is not None and request.due <= now:
                found.append(request.kept)
                request.kept, request.due = None, self._next(request, now)
            if name not in alive:
                del self._requests[name]
                self._streams -= request.streams
        return found

    @property
    def keeps(self) -> bool:
        """Whether an output is kept: then a message follows."""
        return any(request.kept is not None for request in self._requests.values())

    def _add(self, name: str, params: Any, now: float) -> None:
        waits = params is not None and not params.stop
        request = self._requests[name] = _Request(params is None or params.output_kind.name != "FINAL_ONLY", waits)
        self._streams += request.streams
        request.due = self._next(request, now)

    def _next(self, request: _Request, now: float) -> float:
        """When the next output of a request is due: at a moment at which others are, too."""
        if not request.streams:
            return _up(now, WHOLE_S)
        gap_s = min(max(self._chunk_s * self._streams, MIN_GAP_S), MAX_GAP_S)
        return _up(now + gap_s, gap_s * STEP)


def _up(moment: float, step_s: float) -> float:
    return (math.floor(moment / step_s) + 1) * step_s


def _joined(kept: Any, output: Any) -> Any:
    """The newer output, with the tokens and events of one that was kept as well."""
    output.new_token_ids = [*kept.new_token_ids, *output.new_token_ids]
    if kept.events:
        output.events = [*kept.events, *(output.events or ())]
    return output


def _can_wait(output: Any) -> bool:
    """Whether an output can be joined to the next one: it has nothing but tokens and events."""
    return all(getattr(output, name, None) is None for name in _NOT_JOINED)


def _has_counts(stats: Any) -> bool:
    """Whether a step's statistics must be sent; others are states, which the next ones say anew."""
    if stats is None:
        return False
    cache = stats.prefix_cache_stats
    return bool(
        cache.requests or cache.preempted_requests or cache.reset or any(getattr(stats, name, None) for name in _COUNTS)
    )


def scheduler_name(chunks_per_s: float) -> str:
    """The name by which vLLM's process finds the class (`scheduler_cls`). `chunks_per_s`: MAX_STREAM_CHUNKS_PER_S.

    The rate is in the name, because vLLM's `additional_config` is part of the key of compiled code.
    """
    return f"{__name__}.{_NAME}{max(1, round(1e6 / chunks_per_s))}"


def __getattr__(name: str) -> Any:
    """What a name of `scheduler_name` stands for. Importing this module must not import vLLM."""
    every_us = name.removeprefix(_NAME)
    if every_us == name or not every_us.isdecimal():
        raise AttributeError(name)
    return functools.partial(_scheduler, 1e6 / int(every_us))


def _scheduler(chunks_per_s: float, vllm_config: Any, **named: Any) -> Any:
    """The scheduler that vLLM chooses for this configuration, with bundled outputs."""
    config = vllm_config.scheduler_config
    config.scheduler_cls = None
    base = config.get_scheduler_cls()

    class BundlingScheduler(base):  # type: ignore[misc, valid-type] # vLLM is not typed for us
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            self._bundles: defaultdict[int, Bundles] = defaultdict(lambda: Bundles(chunks_per_s))
            self._silent_until = 0.0  # without outputs

        def update_from_output(self, *args: Any, **named: Any) -> Any:
            messages = super().update_from_output(*args, **named)
            now = time.monotonic()
            for client, message in list(messages.items()):
                bundles = self._bundles[client]
                message.outputs = bundles.ready(message.outputs, self.requests, now)
                wanted = message.outputs or message.finished_requests or _has_counts(message.scheduler_stats)
                # The last step of all tells that nothing runs any more: nothing is kept then.
                if wanted or not bundles.keeps or now >= self._silent_until:
                    self._silent_until = now + WHOLE_S
                else:
                    del messages[client]
            return messages

    return BundlingScheduler(vllm_config=vllm_config, **named)
