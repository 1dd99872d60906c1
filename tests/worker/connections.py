"""Records where every Python process of a worker connects to.

The recorder is an audit hook: it sees each `connect` of each socket object, whoever made it and however it is imported.
It does not see connections that C code makes without a socket object; for those, the processes' sockets are looked at.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

RECORDER = """
import json, os, sys, time

_path = os.environ["LLMPOD_TEST_CONNECTIONS"]


def _record(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        where = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        line = json.dumps([time.time(), os.getpid(), event, where], default=repr) + chr(10)
        file = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)


sys.addaudithook(_record)
"""


class Connection(NamedTuple):
    """One connect, lookup of a name, or datagram. `where`: (host, port), a socket's path, or a name."""

    at: float  # seconds since the epoch
    pid: int
    event: str
    where: object


class Recorder:
    """A sitecustomize module in a folder of its own, and what it wrote."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(RECORDER)
        self._file = folder / "connections.jsonl"
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.variables = {"PYTHONPATH": os.pathsep.join(paths), "LLMPOD_TEST_CONNECTIONS": str(self._file)}

    @property
    def all(self) -> list[Connection]:
        return [Connection(*json.loads(line)) for line in self._file.read_text().splitlines()]

    def beyond_this_machine(self) -> list[Connection]:
        """All but Unix sockets, whose addresses are paths."""
        return [found for found in self.all if not isinstance(found.where, str) or "/" not in found.where]
