"""LoRA adapters, checked before the model is loaded: a bad one stops the start with its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import orjson

from llmpod.worker.errors import StartError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as MAX_LORA_RANK (vllm/config/lora.py)."""


def rank_for(adapters: Mapping[str, str], model_names: tuple[str, ...]) -> int | None:
    """The smallest MAX_LORA_RANK that holds every adapter; None if none of them is a folder that tells.

    Raises:
        StartError: names the adapter that has no files, no readable configuration, or the model's own name.
    """
    largest = 0
    for name, path in adapters.items():
        if name.casefold() in {known.casefold() for known in model_names}:
            raise _refusal(name, "has the model's own name.", "Rename the adapter.")
        folder = Path(path).expanduser()
        if not folder.exists():
            if folder.is_absolute() or path.count("/") != 1:
                raise _refusal(name, f"is not there: {path}.", "Give a folder or a hub id.")
            continue  # a hub id: vLLM fetches it, and says what is wrong with it
        config = folder / "adapter_config.json"
        try:
            rank = orjson.loads(config.read_bytes())["r"]
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            raise _refusal(
                name, f"has no adapter_config.json with a rank in it ({path}).", "Give a PEFT adapter's folder."
            ) from None
        if not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
            raise _refusal(name, f"has the rank {rank}; at most {RANKS[-1]} is possible.", "Use another adapter.")
        largest = max(largest, rank)
    return next(rank for rank in RANKS if rank >= largest) if largest else None


def _refusal(name: str, what: str, cure: str) -> StartError:
    return StartError(f"LORA_MODULES: the adapter {name!r} {what}", cure, setting="LORA_MODULES")
