"""Fields of the events by which an operator knows a start: what runs where, what the start took, and what it left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmpod.worker import environ, machine
from llmpod.worker.engine.start import hub
from llmpod.worker.engine.start.progress import Progress
from llmpod.worker.settings import Settings

SHOWN_CHARS = 200
"""Length to which a setting's value is cut."""


@dataclass(frozen=True)
class Started:
    """What a start found and took."""

    at: float  # monotonic seconds
    capabilities: Mapping[str, bool]
    warm_up: Mapping[str, dict[str, Any]]
    start_ms: Mapping[str, float]
    gpus: tuple[machine.Gpu, ...]  # with the memory that was free when it ended
    commit: str | None = None  # of this software
    revision: str | None = None  # of the model


def environment(
    settings: Settings, variables: Mapping[str, str], gpus: machine.Gpus, disk: machine.Disk
) -> dict[str, Any]:
    """The fields of the `environment` event. What cannot be found is None."""
    total, free = machine.memory()
    return {
        **machine.versions(),
        "commit": machine.commit(variables),
        "driver": gpus.driver,
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus.found],
        "gpus_unknown": gpus.unknown,
        "cpus": machine.processors(),
        "memory_mib": total,
        "memory_free_mib": free,
        "cache": dataclasses.asdict(disk),
        "network_volume": machine.network_volume(),
        "hf_token": hub.has_token(),
        "settings": environ.differing(settings, SHOWN_CHARS),
    }


def memory(
    started: Started, progress: Progress, kv_cache_bytes: int | None, estimated: dict[str, Any] | None
) -> dict[str, Any]:
    """Memory in MiB by what holds it: of a device as vLLM measured it, and of all processes of this worker.

    `kv_cache_bytes`: the size that was asked for, where vLLM does not measure. `estimated`: by fit.py, before the load.
    """
    kinds: dict[str, Any] = {} if kv_cache_bytes is None else {"kv_cache_mib": kv_cache_bytes // machine.MIB}
    kinds |= {f"{kind}_mib": size for kind, size in progress.memory_mib().items()}
    if started.gpus:
        kinds["gpus"] = [dataclasses.asdict(gpu) for gpu in started.gpus]
    if estimated is not None:
        kinds["estimated"] = {name: estimated.get(name) for name in ("fits", "weights_mib", "need_mib")}
    return kinds | {"processes_mib": machine.used_mib()}
