"""RunPod's GPU types: the pools an endpoint chooses from (gpuIds), and the memory of the cards in each.

Pools and cards: docs.runpod.io, the pages "GPU types" of the SDK and of Flash. Memory is what nvidia-smi reports, which
is less than the name says where error correction takes its share. An endpoint of a pool may get any of its cards,
so the smallest counts.
"""

from __future__ import annotations

import re

from llmpod.plan.errors import UsageError

MIB = 1 << 20
LARGEST_MEMORY = 1 << 50

POOLS: dict[str, dict[str, int]] = {
    "AMPERE_16": {"RTX A4000": 16376, "RTX 2000 Ada": 16380, "RTX 4000 Ada": 20475},
    "AMPERE_24": {"RTX A4500": 20470, "RTX A5000": 24564, "RTX 3090": 24576},
    "ADA_24": {"L4": 23034, "RTX 4090": 24564},
    "ADA_32_PRO": {"RTX 5090": 32607},
    "AMPERE_48": {"A40": 46068, "RTX A6000": 49140},
    "ADA_48_PRO": {"L40": 46068, "L40S": 46068, "RTX 6000 Ada": 49140},
    "AMPERE_80": {"A100 80GB": 81920},
    "ADA_80_PRO": {"H100 80GB": 81559, "H100 NVL": 95830},
    "BLACKWELL_96": {"RTX PRO 6000": 97887},
    "HOPPER_141": {"H200": 143771},
    "BLACKWELL_180": {"B200": 183359},
}
"""Cards of each pool and their MiB; pools by memory, the smallest first."""


def pool_bytes(pool: str) -> int:
    """Memory of the smallest card of a pool."""
    return min(POOLS[pool].values()) * MIB


def gpu_bytes(name: str) -> int:
    """Memory of a GPU by the name of its pool, or by a part of a card's name; of several, the smallest.

    Raises:
        UsageError: no pool or card is called so.
    """
    if name.upper() in POOLS:
        return pool_bytes(name.upper())
    wanted = re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())
    cards = {re.sub(r"[^a-z0-9]", "", card.lower()): mib for pool in POOLS.values() for card, mib in pool.items()}
    found = [cards[wanted]] if wanted in cards else [mib for card, mib in cards.items() if wanted and wanted in card]
    if not found:
        pools = ", ".join(POOLS)
        raise UsageError(f"{name!r} is no GPU type: use one of {pools}, a card such as 'RTX 4090', or --memory.")
    return min(found) * MIB


def memory_bytes(text: str) -> int:
    """Memory from words such as 24G, 24GiB, 80GB or 24564M. G and M are binary (2**30, 2**20), GB and MB decimal.

    Raises:
        UsageError: it is no such size.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([GM]i?B?)", text.strip(), re.IGNORECASE)
    units = {"G": 1 << 30, "GIB": 1 << 30, "GI": 1 << 30, "GB": 10**9, "M": 1 << 20, "MIB": 1 << 20, "MI": 1 << 20}
    size = int(float(match[1]) * {**units, "MB": 10**6}[match[2].upper()]) if match else 0
    if not 0 < size <= LARGEST_MEMORY:
        raise UsageError(f"{text!r} is no size of memory: write 24G or 24564M.")
    return size
