"""Whether the model fits into the GPUs' memory, estimated before it is loaded (llmpod.plan).

An estimate stops no start. The `fit` event has it, as a warning if the model does not fit, and so has `ready`, beside
what vLLM measured. It is made when vLLM has been imported: it needs transformers, which vLLM wants to import itself.
"""

from __future__ import annotations

from typing import Any

from llmpod import plan
from llmpod.worker.engine.start import engine_options
from llmpod.worker.engine.start.preflight import Findings, within
from llmpod.worker.event_log import Emit, describe
from llmpod.worker.machine import MIB, Gpu
from llmpod.worker.settings import Settings

DEADLINE_S = 20.0
"""Time for what the estimate reads: a model's config.json and the headers of its weights, which may be on the hub."""


async def report(settings: Settings, found: Findings, emit: Emit) -> dict[str, Any] | None:
    """Write the `fit` event and return its fields; None without GPUs, or where the model is not known to be there."""
    if not found.gpus.found or not found.listed:
        return None
    try:
        made = await within(DEADLINE_S, estimate, settings, found.gpus.found)
    except Exception as error:  # noqa: BLE001 - a model that nobody can estimate may start
        made = {"fits": None, "unknown": describe(error)}
    emit("fit", level="warning" if made["fits"] is False else None, **made)
    return made


def estimate(settings: Settings, gpus: tuple[Gpu, ...]) -> dict[str, Any]:
    """The estimate per GPU, sizes in MiB: fits, need_mib, usable_mib, weights_mib, kv_cache_mib, largest_max_model_len.

    It is for one request of MAX_MODEL_LEN tokens, without which vLLM does not start. What cannot be told is None, and
    `unknown` says why. Reads the model's config.json and the headers of its weights: seconds, for a model of the hub.
    """
    memory = min((gpu.memory_mib for gpu in gpus if gpu.memory_mib is not None), default=None)
    if memory is None:
        return {"fits": None, "unknown": "nvidia-smi does not say how much memory the GPUs have"}
    try:
        model = plan.read_model(settings.model, revision=settings.model_revision)
        size = settings.tensor_parallel_size
        size = size or engine_options.tensor_parallel_size(len(gpus), model.shape.attention_heads)
        made = plan.estimate(model, memory * MIB, _request(settings, size))
    except plan.PlanError as error:
        return {"fits": None, "unknown": str(error)}
    return {
        "fits": made.fits,
        "gpus": made.gpus,
        "need_mib": _mib(made.need_bytes_per_gpu),
        "usable_mib": _mib(int(made.utilization * made.memory_bytes_per_gpu)),
        "weights_mib": _mib(None if made.weights_bytes is None else made.weights_bytes // made.gpus),
        "kv_cache_mib": _mib(made.kv_bytes_per_gpu),
        "largest_max_model_len": made.largest_max_model_len,
        "unknown": "; ".join(made.unknown) or None,
    }


def _request(settings: Settings, gpus: int) -> plan.Request:
    given = {
        "max_model_len": settings.max_model_len,
        "utilization": settings.gpu_memory_utilization,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
    }
    return plan.Request(gpus=gpus, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _mib(size: int | None) -> int | None:
    return None if size is None else size // MIB
