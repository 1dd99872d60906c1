"""How the process leaves: with its children, and in time.

vLLM's engine and the SDK's heartbeat are processes below this one, and Python waits at exit for those it knows. A
worker that RunPod ends, or that gives up, must not hang there, and must leave nobody behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from llmpod.worker import scratch

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have Linux end this process when the thread that started it ends, however it ends: SIGKILL runs no handler."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children_end_with_this_process() -> None:
    """The same for every process that this one's main thread forks, and for those that they fork in turn.

    A process that another thread forks may outlive that thread, and is left alone.
    """
    forking = (0, False)

    def before() -> None:
        nonlocal forking
        forking = os.getpid(), threading.current_thread() is threading.main_thread()

    def in_child() -> None:
        parent, from_main = forking
        if from_main:
            end_with_parent()
            if os.getppid() != parent:
                os._exit(1)  # it had ended before it was asked

    os.register_at_fork(before=before, after_in_child=in_child)


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
    scratch.remove()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def leave_within(seconds: float, status: int) -> None:
    """Leave with `status` after so many seconds, in case that the orderly way out takes longer."""
    timer = threading.Timer(seconds, leave_now, (status,))
    timer.daemon = True
    timer.start()


def open_standard_streams() -> None:
    """Give a process that was started with closed ones (`>&-`) others that go nowhere.

    Otherwise the next socket is number 1, and what a library prints goes into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for good
