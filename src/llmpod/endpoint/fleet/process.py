"""Worker process: started under a supervisor (process_guard.py), observed through pipes, terminated."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmpod.endpoint.errors import StartError
from llmpod.endpoint.fleet import process_guard

EXIT_POLL_S = 0.02
LAST_LINES_S = 2.0
"""How long output is read after the end. It ends by itself, unless a process that outlived the supervisor holds it."""
LINE_LIMIT = 8192
"""Characters of a log line that are kept; the SDK at DEBUG prints whole outputs."""


def check_command(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
    """Raises StartError where there is no such folder or program, before the first worker is started."""
    if not cwd.is_dir():
        raise StartError(f"--cwd {cwd}: no such directory")
    program = command[0]
    found = (cwd / program).exists() if "/" in program else shutil.which(program, path=env.get("PATH")) is not None
    if not found:
        raise StartError(f"--command: there is no program {program!r}")


class WorkerProcess:
    """The processes of one worker. Every line they print goes to `on_line`, without its line end."""

    def __init__(self, process: Process, status_fd: int, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._status_fd = status_fd
        self._on_line = on_line
        self._started_s = time.monotonic()
        self.last_line = ""
        self.last_error_line = ""
        self.pid: int | None = None
        """Of the command itself, known a few milliseconds after the start; the supervisor has another."""
        asyncio.get_running_loop().add_reader(status_fd, self._read_pid)

    @classmethod
    async def start(
        cls, command: Sequence[str], cwd: Path, env: Mapping[str, str], on_line: Callable[[str], None]
    ) -> WorkerProcess:
        """Raises OSError when not even the supervisor can be started; a bad `command` shows as exit code 127."""
        status_read, status_write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(process_guard.__file__), str(status_write), *command,
                cwd=cwd, env=dict(env), stdin=PIPE, stdout=PIPE, stderr=PIPE,
                pass_fds=(status_write,), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(status_read)
            raise
        finally:
            os.close(status_write)
        return cls(process, status_read, on_line)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._started_s

    def order(self, order: bytes) -> None:
        """Has the supervisor follow one of its orders, if it still runs."""
        stdin = self._process.stdin
        if self._process.returncode is None and stdin is not None and not stdin.is_closing():
            stdin.write(order)

    async def wait(self) -> int:
        """Waits until every process is gone and every line was read; the exit code is 128 + N for signal N."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        readers = [
            asyncio.create_task(self._read_lines(self._process.stdout, is_error=False)),
            asyncio.create_task(self._read_lines(self._process.stderr, is_error=True)),
        ]
        try:
            # Process.wait() would also wait for the pipes, which a process that outlived the supervisor may hold.
            while (code := self._process.returncode) is None:  # noqa: ASYNC110 -- there is no event to wait for
                await asyncio.sleep(EXIT_POLL_S)
            if code < 0:
                # The supervisor was killed. Its command died with it (PR_SET_PDEATHSIG), the command's group may not.
                if self.pid is not None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.pid, signal.SIGKILL)
                code = 128 - code
            await asyncio.wait(readers, timeout=LAST_LINES_S)
            return code
        finally:
            for reader in readers:
                reader.cancel()
            self._forget_status()
            self._process._transport.close()  # type: ignore[attr-defined] # closes pipes somebody else still holds

    async def _read_lines(self, stream: asyncio.StreamReader, *, is_error: bool) -> None:
        rest = b""
        while block := await stream.read(65536):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._line(line, is_error=is_error)
            if len(rest) > LINE_LIMIT:
                rest = rest[:LINE_LIMIT]
        if rest:
            self._line(rest, is_error=is_error)

    def _line(self, line: bytes, *, is_error: bool) -> None:
        text = line[:LINE_LIMIT].decode(errors="replace").rstrip()
        if text:
            self.last_line = text
            if is_error:
                self.last_error_line = text
        self._on_line(text)

    def _read_pid(self) -> None:
        if text := os.read(self._status_fd, 32):
            self.pid = int(text)
        self._forget_status()

    def _forget_status(self) -> None:
        if self._status_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._status_fd)
            os.close(self._status_fd)
            self._status_fd = -1
