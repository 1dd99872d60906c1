"""Process shutdown: kill child processes and exit before a deadline.

vLLM's engine and the SDK's heartbeat are child processes, and Python waits for those it knows at exit. A worker that
RunPod stops, or that gives up, must not hang there, and must leave no process behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import NoReturn

import psutil

from llmpod.worker import scratch

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, also by SIGKILL (PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children_end_with_this_process() -> None:
    """Apply `end_with_parent` to every process forked by this process's main thread, and to their children.

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


def end_children() -> None:
    """Send SIGKILL to all descendant processes, parents first."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def leave_now(status: int) -> NoReturn:
    """Kill all descendant processes and exit at once."""
    end_children()
    scratch.remove()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def leave_within(seconds: float, status: int) -> None:
    """Exit with `status` after so many seconds unless the process has ended by then."""
    timer = threading.Timer(seconds, leave_now, (status,))
    timer.daemon = True
    timer.start()


def open_standard_streams() -> None:
    """Open /dev/null in place of standard streams that were closed at start (`>&-`).

    Otherwise the next socket gets their number, and what a library prints is sent over it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for good
