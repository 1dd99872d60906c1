"""LoRA adapters, checked before the model is loaded: an invalid one stops the start with its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson
import safetensors

from llmpod.worker.errors import StartError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as MAX_LORA_RANK (vllm/config/lora.py)."""


def rank_for(adapters: Mapping[str, str], model_names: tuple[str, ...]) -> int | None:
    """The smallest MAX_LORA_RANK for all adapters; None if no adapter folder states a rank.

    Raises:
        StartError: names the adapter that has no files, none that can be read, or the model's own name.
    """
    largest = 0
    for name, path in adapters.items():
        if name.casefold() in {known.casefold() for known in model_names}:
            raise _refusal(name, "has the model's own name.", "Rename the adapter.")
        folder = Path(path).expanduser()
        if not folder.exists():
            if folder.is_absolute() or path.count("/") != 1:
                raise _refusal(name, f"is not there: {path}.", "Give a folder or a hub id.")
            continue  # a hub id: vLLM downloads it and reports errors
        rank = _rank(name, folder)
        _check_weights(name, folder)
        largest = max(largest, rank)
    return next(rank for rank in RANKS if rank >= largest) if largest else None


def _rank(name: str, folder: Path) -> int:
    try:
        config = orjson.loads((folder / "adapter_config.json").read_bytes())
        ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise _refusal(
            name, f"has no adapter_config.json with a rank in it ({folder}).", "Give a PEFT adapter's folder."
        ) from None
    for rank in ranks:
        if not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
            raise _refusal(name, f"has the rank {rank}; 1 to {RANKS[-1]} are possible.", "Use another adapter.")
    return max(ranks)


def _check_weights(name: str, folder: Path) -> None:
    """Check that the weights exist and that the file is complete: an interrupted upload is not."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        if any((folder / f"adapter_model.{kind}").is_file() for kind in ("bin", "pt")):
            return
        raise _refusal(name, f"has no adapter_model.safetensors ({folder}).", "Give a PEFT adapter's folder.")
    try:
        with safetensors.safe_open(weights, framework="numpy"):
            pass
    except (OSError, safetensors.SafetensorError) as error:
        raise _refusal(name, f"has weights that cannot be read: {error}.", "Copy the adapter again.") from None


def _refusal(name: str, what: str, cure: str) -> StartError:
    return StartError(f"LORA_MODULES: the adapter {name!r} {what}", cure, setting="LORA_MODULES")
