"""A worker process with the scripted engine: `python -m tests.worker.scripted_process [http] [die-after SECONDS]`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

from llmpod.worker import environ
from llmpod.worker.event_log import EventLog
from llmpod.worker.http import server
from llmpod.worker.http.loading import LoadingServer
from llmpod.worker.queue import loop
from llmpod.worker.worker import Worker
from tests.worker.scripted import ScriptedEngine, ScriptedStart


class Engine(ScriptedEngine):
    """It has a child process, as a real one has."""

    child: subprocess.Popen[bytes]

    def shutdown(self) -> None:
        if "hang" in sys.argv:
            time.sleep(600)
        self.child.kill()
        self.child.wait()


class Start(ScriptedStart):
    """It starts the engine's child."""

    async def run(self) -> Worker:
        engine.child = subprocess.Popen(["sleep", "600"])  # noqa: ASYNC220 - as vLLM does
        log.emit("loading", child=engine.child.pid)
        if "load" in sys.argv:
            time.sleep(600)  # noqa: ASYNC251 - as loading blocks the loop
        if "die-after" in sys.argv:
            asyncio.get_running_loop().call_later(float(sys.argv[sys.argv.index("die-after") + 1]), engine.die)
        log.emit("ready")
        return await super().run()


log = EventLog()
environment = environ.load()
engine: Any = Engine(tokens_per_s=100)
worker = Worker(environment.settings, engine, log.emit)
start: Any = Start(worker)
if "http" in sys.argv:
    loading = LoadingServer(environment.settings, environment.mode.host)
    loading.start()
    status = server.serve(start, loading)
else:
    status = loop.serve(start)
log.emit("rest", unfinished=engine.unfinished, slots=worker.slots.in_use, waiting=worker.slots.waiting)
sys.exit(status)
