"""Garbage collection during the start: excludes the 600,000 objects of vLLM and torch from later collections.

They live as long as the process, and a full collection visits all of them: on a small machine that blocks the event
loop for a third of a second. Python makes another one when the process ends.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def frozen_afterwards() -> Iterator[None]:
    """Disable garbage collection inside the block, then freeze: later collections skip the objects made in it.

    vLLM's own API server does the same.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def settle() -> None:
    """End `frozen_afterwards` in a process that was forked inside the block."""
    gc.freeze()
    gc.enable()
