"""The worker's temporary folder: it goes with the worker, or, if that was killed, when the next one starts.

vLLM, torch and multiprocessing make sockets, locks and caches under TMPDIR and leave them behind when they are ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from multiprocessing import util
from pathlib import Path

from llmpod.worker import environ

PREFIX = "llmpod-worker-"
_LOCK = ".lock"  # held while the worker, or a process that it forked, lives
_LONGEST = 65  # characters; a socket's path may have 107, and vLLM's names of sockets have 36

_mine: tuple[int, Path] | None = None  # the process that claimed it, and the folder


def claim() -> None:
    """Put this process's temporary files, and those of the processes it starts, into a folder of its own.

    Where that is not possible (a full or a read-only disk, a long path), they go where they always went.
    """
    global _mine
    with contextlib.suppress(OSError):
        base = Path(tempfile.gettempdir())
        for left in base.glob(f"{PREFIX}*"):
            _remove_if_dead(left)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        if len(str(folder)) > _LONGEST or not _locked(folder / _LOCK, os.O_CREAT):
            shutil.rmtree(folder, ignore_errors=True)
            return
        _mine = os.getpid(), folder
        util.Finalize(None, remove, exitpriority=-200)  # after multiprocessing's own folder, which is in it
        cache = Path("~/.cache/llmpod/torchinductor").expanduser()  # what a start compiles serves the next one
        if os.access(Path("~").expanduser(), os.W_OK):
            environ.provide({"TORCHINDUCTOR_CACHE_DIR": str(cache)})
        environ.put({"TMPDIR": str(folder)})
        tempfile.tempdir = None


def remove() -> None:
    """Remove the folder. Without effect in a process that did not claim it."""
    if _mine is not None and _mine[0] == os.getpid():
        shutil.rmtree(_mine[1], ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    """Only what has a lock that nobody holds: one without is being made."""
    with contextlib.suppress(OSError):
        if folder.stat().st_uid == os.getuid() and _locked(folder / _LOCK):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, flags: int = 0) -> bool:
    """Take the lock, and keep it as long as this process lives."""
    descriptor = os.open(path, os.O_RDWR | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True
