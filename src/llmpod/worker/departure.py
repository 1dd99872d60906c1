"""How the process leaves: with its children, and in time.

vLLM's engine and the SDK's heartbeat are processes below this one, and Python waits at exit for those it knows. A
worker that RunPod ends, or that gives up, must not hang there, and must leave nobody behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn


def descendants() -> list[int]:
    """The processes below this one, parents first (Linux: /proc)."""
    found = [os.getpid()]
    for pid in found:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in tasks.read_text().split())
    return found[1:]


def end_children() -> None:
    """SIGKILL to every process below this one."""
    for pid in descendants():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def leave_now(status: int) -> NoReturn:
    """End the children and this process at once."""
    end_children()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def leave_within(seconds: float, status: int) -> None:
    """Leave with `status` after so many seconds, in case that the orderly way out takes longer."""
    timer = threading.Timer(seconds, leave_now, (status,))
    timer.daemon = True
    timer.start()
