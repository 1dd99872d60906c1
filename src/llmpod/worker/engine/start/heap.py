"""Keeps Python's garbage collector from what a start leaves behind: 600,000 objects of vLLM's and torch's.

They live as long as the process, and a full collection looks through all of them: while it does, a third of a second on
a small machine, the event loop serves nobody. Python makes another one when the process ends.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def built_to_last() -> Iterator[None]:
    """What is made inside is not collected, then or ever, nor looked through again. vLLM's own server does the same."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def settle() -> None:
    """The end of `built_to_last`, in a process whose beginning was elsewhere: in the one that it was forked from."""
    gc.freeze()
    gc.enable()
