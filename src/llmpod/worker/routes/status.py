"""Reply of the worker's own route /status."""

from __future__ import annotations

import time
from typing import Any, Literal

from llmpod import __version__
from llmpod.worker import environ
from llmpod.worker.engine.engine import Engine
from llmpod.worker.jobs.slots import Slots

State = Literal["ready", "draining", "failed"]


def reply(engine: Engine, slots: Slots, *, draining: bool, concurrency: int) -> dict[str, Any]:
    """The state of this worker, from what is in memory: no call of the engine, and no side effect.

    GPU memory is what was used when the start ended: vLLM takes all it uses then.
    """
    started = engine.started
    return {
        "state": state(dead=engine.dead, draining=draining),
        "worker_id": environ.worker_id(),
        "version": __version__,
        "commit": started.commit,
        "model": engine.model_name,
        "revision": started.revision,
        "capabilities": dict(started.capabilities),
        "warm_up": dict(started.warm_up),
        "slots": {"capacity": slots.capacity, "in_use": slots.in_use, "waiting": slots.waiting},
        "concurrency": concurrency,
        "kv_cache_tokens": engine.kv_cache_tokens,
        "gpus": [
            {
                "name": gpu.name,
                "total_mib": gpu.memory_mib,
                "used_mib": None if gpu.memory_mib is None or gpu.free_mib is None else gpu.memory_mib - gpu.free_mib,
            }
            for gpu in started.gpus
        ],
        "uptime_s": round(time.monotonic() - started.at, 1),
        "start_ms": dict(started.start_ms),
    }


def state(*, dead: bool, draining: bool) -> State:
    """The worker's state; a dead engine is final, whatever else is true."""
    return "failed" if dead else "draining" if draining else "ready"
