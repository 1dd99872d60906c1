"""Process supervisor of a worker: runs one command and leaves none of its processes behind.

Usage (by process.py only): python -I -S process_guard.py STATUS_FD COMMAND [ARGUMENT ...]

Why a process of its own: a worker starts children (the SDK's ping process is one) that outlive it, and the endpoint
itself can be killed with SIGKILL, after which it can clean up nothing. The supervisor is the child subreaper of all
that the command starts, so no descendant escapes to init, and its standard input is a pipe whose other end only the
endpoint holds: when the endpoint is gone, however it went, the pipe closes and the supervisor kills all descendants.

Orders are single bytes on that pipe. The supervisor ends when the command ends, with its exit code (128 + N for
signal N), and as the death of PID 1 ends a container, what the command left running is killed then.

Standard library only, and no site-packages: it starts in about 20 ms.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

NICENESS = 10
"""Of a worker's processes."""

TERMINATE, KILL, FREEZE, THAW = b"T", b"K", b"Z", b"C"
"""Orders: SIGTERM to the command alone, as a container's PID 1 gets it; SIGKILL, SIGSTOP and SIGCONT to everything."""

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def give_way() -> None:
    """In the command's process, before exec: let endpoint and clients have the processors first.

    They share them with the worker here, which they do not on RunPod. An engine that computes on the CPU keeps every
    core busy, and Linux then leaves others without a turn for half a second and more, though they need next to nothing.
    Linux weighs sessions against each other (sched(7), autogroup) and processes within one, so both are set.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    with contextlib.suppress(OSError):
        os.nice(NICENESS)


def prepare() -> None:
    """In the command's process, before exec: give way, and be killed by the kernel when the supervisor dies."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    give_way()


def descendants(root: int) -> list[int]:
    """Process ids below `root`, parents first. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError):
                # The command name in field 2 may hold spaces and parentheses; the parent follows the last ')'.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def signal_all(number: int, group: int) -> None:
    """Signals every descendant, and the command's process group where /proc cannot tell."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reap() -> dict[int, int]:
    """Collects ended children without waiting: {pid: wait status}. Raises ChildProcessError when none is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if not ended:
                raise
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def kill_everything(group: int) -> None:
    """SIGKILL until no descendant is left; one that forks meanwhile is found in the next round."""
    while True:
        signal_all(signal.SIGKILL, group)
        try:
            while reap():
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def keep(status_fd: int, command: list[str]) -> int:
    """Runs the command, follows orders, and returns its exit code when all of its processes are gone."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        child = subprocess.Popen(  # noqa: S603 -- running the user's command is the purpose
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=prepare,
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    os.write(status_fd, b"%d\n" % child.pid)
    os.close(status_fd)
    # The worker's output pipes must reach their end when the worker's processes are gone, not when the supervisor is.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    while True:
        readable, _, _ = select.select([0, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            ended = reap()
            if child.pid in ended:
                with contextlib.suppress(ChildProcessError):
                    kill_everything(child.pid)
                code = os.waitstatus_to_exitcode(ended[child.pid])
                return code if code >= 0 else 128 - code
        if 0 in readable:
            order = os.read(0, 1)
            if order in (b"", KILL):
                kill_everything(child.pid)
                return 128 + signal.SIGKILL
            if order == TERMINATE:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)
            elif order in (FREEZE, THAW):
                signal_all(signal.SIGSTOP if order == FREEZE else signal.SIGCONT, child.pid)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
