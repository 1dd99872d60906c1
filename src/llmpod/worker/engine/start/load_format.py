"""LOAD_FORMAT: what vLLM's ways of reading weights need, checked before its import, and which suits where they lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from llmpod.worker.environ import NONE_WORDS
from llmpod.worker.errors import StartError

FREE_SHARE = 0.9
"""Share of the available memory into which vLLM prefetches weights (model_loader/weight_utils.py)."""
WORTH_BYTES = 1 << 30
"""Size of weights from which on it matters how they are read."""
PREFETCHED = ("nfs", "nfs4", "lustre")
"""File systems from which vLLM prefetches by itself."""
NETWORK = (*PREFETCHED, "fuse", "cifs", "smb3", "ceph", "beegfs", "gpfs", "afs")
"""File systems of other machines. RunPod's network volumes are MooseFS, which is mounted as `fuse` or `fuse.…`."""
OBJECT_STORES = {"s3://": "s3", "gs://": "gcs", "az://": "azure"}
"""Addresses of models that vLLM reads with Run:ai's streamer, and the part of it that does."""


class Need(NamedTuple):
    """What a format needs: a module, the distribution that has it, a GPU."""

    module: str | None = None
    distribution: str | None = None
    gpu: bool = False


_STREAMER = Need("runai_model_streamer", "runai-model-streamer")
FORMATS = {
    **dict.fromkeys(("auto", "hf", "safetensors", "mistral", "pt", "npcache", "dummy", "sharded_state"), Need()),
    "runai_streamer": _STREAMER,
    "runai_streamer_sharded": _STREAMER,
    "fastsafetensors": Need("fastsafetensors", "fastsafetensors", gpu=True),
    "instanttensor": Need("instanttensor", "instanttensor", gpu=True),
    "tensorizer": Need("tensorizer", "tensorizer"),
    "modelexpress": Need("modelexpress", "modelexpress"),
    "ipc_cache": Need(gpu=True),
}
"""The formats of vLLM 0.32; a test holds them against its registry."""
SAFETENSORS = frozenset({"auto", "hf", "safetensors"})
"""Those that read safetensors where there are some."""


def of(environment: Mapping[str, str]) -> str:
    """The format that LOAD_FORMAT names."""
    chosen = environment.get("LOAD_FORMAT", "").strip().lower()
    return "auto" if not chosen or chosen in NONE_WORDS else chosen


def check(environment: Mapping[str, str], model: str, *, on_cpu: bool) -> None:
    """Refuse a format that cannot work here. vLLM says so when its engine has started, in 20 seconds, as a traceback.

    Raises:
        StartError: names what is missing, and what can be had instead.
    """
    chosen = of(environment)
    store = next((part for prefix, part in OBJECT_STORES.items() if model.lower().startswith(prefix)), None)
    if store is not None:
        if chosen not in ("auto", "runai_streamer", "runai_streamer_sharded", "modelexpress"):
            raise _refusal(f"LOAD_FORMAT={chosen} does not read models from {model[:5]}.", "Unset LOAD_FORMAT.")
        chosen = "runai_streamer" if chosen == "auto" else chosen
    need = FORMATS.get(chosen)
    if need is None:
        if any(not point.value.startswith("vllm.") for point in entry_points(group="vllm.general_plugins")):
            return  # vLLM's plugins may bring formats of their own
        possible = ", ".join(name for name in FORMATS if _missing(FORMATS[name], on_cpu=on_cpu) is None)
        raise _refusal(f"LOAD_FORMAT={chosen!r} is none of vLLM's formats.", f"Unset it, or use one of {possible}.")
    missing = _missing(need, on_cpu=on_cpu)
    if missing is None and store is not None and need is _STREAMER and not find_spec(f"{need.module}_{store}"):
        missing = f"{need.distribution}[{store}]"
    if missing == "a GPU":
        raise _refusal(f"LOAD_FORMAT={chosen} needs a GPU, and this is vLLM's CPU build.", "Unset LOAD_FORMAT.")
    if missing is not None:
        raise _refusal(
            f"LOAD_FORMAT={chosen} needs the package {missing}, which is not installed.",
            f"Add `pip install '{missing}'` to the image, or "
            + ("name a model of the hub." if store else "unset LOAD_FORMAT."),
        )


def advice(environment: Mapping[str, str], weights: Path, free_mib: int | None) -> str | None:
    """The setting with which the weights in a folder are read faster, and why. Blocks as long as the file system does.

    None where vLLM's default suits: on a local disk, where vLLM prefetches by itself, and where an operator has chosen.
    `free_mib`: available main memory.
    """
    if of(environment) not in SAFETENSORS or environment.get("SAFETENSORS_LOAD_STRATEGY"):
        return None
    kind = filesystem(os.path.realpath(weights), Path("/proc/mounts").read_text())
    return recommend(kind, sum(file.stat().st_size for file in weights.glob("*.safetensors")), free_mib)


def recommend(kind: str, size: int, free_mib: int | None, *, streamer: bool | None = None) -> str | None:
    """The advice for `size` bytes of weights on a file system of this kind. `streamer`: whether Run:ai's is there."""
    if kind.split(".")[0] not in NETWORK or "overlay" in kind or size < WORTH_BYTES:
        return None
    fits = free_mib is not None and size <= FREE_SHARE * free_mib * (1 << 20)
    if fits and kind in PREFETCHED:
        return None
    if fits:
        return (
            f"SAFETENSORS_LOAD_STRATEGY=prefetch: the weights are on a network file system ({kind}), and vLLM would "
            "read small pieces of them one after the other."
        )
    if find_spec("runai_model_streamer") if streamer is None else streamer:
        return (
            f"LOAD_FORMAT=runai_streamer: the weights are on a network file system ({kind}) and do not fit into this "
            "machine's free memory, so that vLLM does not prefetch them."
        )
    return None


def filesystem(path: str, mounts: str) -> str:
    """The type of the file system that holds an absolute path, by the content of /proc/mounts; empty if it has none."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        point = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        if point and len(point) >= len(best) and f"{path}/".startswith(point.rstrip("/") + "/"):
            best, kind = point, fields[2]
    return kind


def _missing(need: Need, *, on_cpu: bool) -> str | None:
    if need.gpu and on_cpu:
        return "a GPU"
    return need.distribution if need.module is not None and find_spec(need.module) is None else None


def _refusal(cause: str, cure: str) -> StartError:
    return StartError(cause, cure, setting="LOAD_FORMAT")
