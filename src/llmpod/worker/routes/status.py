"""Reply of the worker's own route /status."""

from __future__ import annotations

import time
from typing import Any, Literal

from llmpod import __version__
from llmpod.worker import environ
from llmpod.worker.engine.engine import Engine
from llmpod.worker.jobs.slots import Slots

State = Literal["loading", "ready", "draining", "failed"]


def reply(engine: Engine, slots: Slots | None, *, draining: bool, concurrency: int | None) -> dict[str, Any]:
    """The state of this worker, from what is in memory: no call of the engine, and no side effect.

    `slots`, `concurrency`: None while the engine is loading. GPU memory is what was used when the start ended: vLLM
    takes all it uses then.
    """
    started = engine.started
    return {
        "state": state(loading=started is None, dead=engine.dead, draining=draining),
        "worker_id": environ.worker_id(),
        "version": __version__,
        "commit": started.commit if started else None,
        "model": engine.model_name,
        "revision": started.revision if started else None,
        "capabilities": dict(started.capabilities) if started else {},
        "warm_up": dict(started.warm_up) if started else {},
        "slots": {"capacity": slots.capacity, "in_use": slots.in_use, "waiting": slots.waiting} if slots else None,
        "concurrency": concurrency,
        "kv_cache_tokens": engine.kv_cache_tokens if started else None,
        "gpus": [
            {
                "name": gpu.name,
                "total_mib": gpu.memory_mib,
                "used_mib": None if gpu.memory_mib is None or gpu.free_mib is None else gpu.memory_mib - gpu.free_mib,
            }
            for gpu in (started.gpus if started else ())
        ],
        "uptime_s": round(time.monotonic() - started.at, 1) if started else None,
        "start_ms": dict(started.start_ms) if started else {},
    }


def state(*, loading: bool, dead: bool, draining: bool) -> State:
    """The worker's state; a dead engine is final, whatever else is true."""
    return "failed" if dead else "loading" if loading else "draining" if draining else "ready"
