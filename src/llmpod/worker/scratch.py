"""Temporary folder of the worker, removed at exit or, after SIGKILL, by the next start.

vLLM, torch and multiprocessing create sockets, locks and caches under TMPDIR and leave them behind when killed.
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

_mine: tuple[int, Path] | None = None  # (process id, folder) of the process that created it


def claim() -> None:
    """Put temporary files of this process and its children into a folder of its own.

    Where that is not possible (a full or read-only disk, a long path), they go to the default place.
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
        cache = Path("~/.cache/llmpod/torchinductor").expanduser()  # compiled code is reused by the next start
        if os.access(Path("~").expanduser(), os.W_OK):
            environ.provide({"TORCHINDUCTOR_CACHE_DIR": str(cache)})
        environ.put({"TMPDIR": str(folder)})
        tempfile.tempdir = None


def remove() -> None:
    """Remove the folder. Does nothing in a process that did not create it."""
    if _mine is not None and _mine[0] == os.getpid():
        shutil.rmtree(_mine[1], ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    """Remove a folder whose lock nobody holds; one without a lock is being created."""
    with contextlib.suppress(OSError):
        if folder.stat().st_uid == os.getuid() and _locked(folder / _LOCK):
            shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, flags: int = 0) -> bool:
    """Take the lock and keep it until this process ends."""
    descriptor = os.open(path, os.O_RDWR | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True
