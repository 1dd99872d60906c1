"""vLLM's processes on the CPU come from a server that has imported vLLM, and find what spawned ones would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.start import cpu_fork_server
from tests.worker.processes import REPOSITORY, environment

pytestmark = pytest.mark.process

PROGRAM = """
import gc, json, multiprocessing, os, sys
from llmpod.worker.engine.start import cpu_fork_server

def worker(answers):
    import torch
    answers.put({"worker": {"threads": torch.get_num_threads(),
                            "cores": sorted(os.sched_getaffinity(0)), "ppid": os.getppid()}})

def engine(answers):
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GOMP_CPU_AFFINITY"] = "0"
    context = multiprocessing.get_context("spawn")
    forked = context.Process(target=worker, args=(answers,))
    forked.start()
    forked.join()
    answers.put({"engine": {"pid": os.getpid(), "late": os.environ.get("LATE"), "method": context.get_start_method(),
                            "collects": gc.isenabled(), "frozen": gc.get_freeze_count(),
                            "gone": "EARLY" not in os.environ, "imported": "wave" in sys.modules,
                            "preload": os.environ.get("LD_PRELOAD")}})

if __name__ == "__main__":
    os.environ["EARLY"] = "1"
    cpu_fork_server.start(["torch", "wave"])
    assert "torch" not in sys.modules
    os.environ["LATE"] = "set after the server was started"
    del os.environ["EARLY"]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=engine, args=(answers,))
    process.start()
    said = answers.get(timeout=60) | answers.get(timeout=60)
    process.join()
    print(json.dumps(said | {"method": context.get_start_method(), "exit": process.exitcode}))
"""


def start(program: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "program.py"
    script.write_text(program)
    return subprocess.run(
        [sys.executable, str(script)],
        env=environment() | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run(program: str, tmp_path: Path) -> Any:
    done = start(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_forked_process_finds_what_a_spawned_one_would(tmp_path: Path) -> None:
    said = run(PROGRAM, tmp_path)
    assert said["method"] == "forkserver"
    assert said["exit"] == 0
    engine, worker = said["engine"], said["worker"]
    assert engine["imported"], "the server had not imported what it was told to"
    assert (engine["late"], engine["gone"]) == ("set after the server was started", True)
    assert engine["collects"], "garbage would pile up in the engine for ever"
    assert engine["frozen"] > 10_000
    assert engine["preload"] is None, "what only the server needs has leaked"
    assert engine["method"] == "fork"
    assert (worker["threads"], worker["cores"], worker["ppid"]) == (1, [0], engine["pid"])


@pytest.mark.parametrize("name", cpu_fork_server.DECIDED_BY_OTHERS)
def test_whoever_decides_how_processes_start_is_left_alone(clean_environment: pytest.MonkeyPatch, name: str) -> None:
    started: list[bool] = []
    clean_environment.setattr(cpu_fork_server.forkserver, "ensure_running", lambda: started.append(True))
    clean_environment.setattr(cpu_fork_server, "_contexts", {})
    clean_environment.setenv(name, "0")
    cpu_fork_server.start(["wave"])
    assert not started
    assert not cpu_fork_server._contexts


def test_a_gpu_s_vllm_forks_by_itself(clean_environment: pytest.MonkeyPatch) -> None:
    versions = {"vllm": "0.32.0+cu130"}
    metadata = cpu_fork_server.importlib.metadata

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    clean_environment.setattr(metadata, "version", version)
    assert not cpu_fork_server.on_cpu()
    versions["vllm"] = "0.32.0+cpu"
    assert cpu_fork_server.on_cpu()
    versions.clear()
    assert not cpu_fork_server.on_cpu()


ORPHAN = """
import multiprocessing, os, signal, time
from llmpod.worker.engine.start import cpu_fork_server

def engine(answers):
    answers.put(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    cpu_fork_server.start([])
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    context.Process(target=engine, args=(answers,)).start()
    print(answers.get(timeout=60), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_engine_does_not_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    killed = start(ORPHAN, tmp_path)
    assert killed.returncode == -signal.SIGKILL
    engine = int(killed.stdout)
    give_up = time.monotonic() + 20
    while psutil.pid_exists(engine):
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.slow
async def test_the_real_engine_s_processes_come_from_the_server(engine: Engine) -> None:
    server = cpu_fork_server.forkserver._forkserver._forkserver_pid
    assert server is not None
    core = psutil.Process(engine._llm.engine_core.resources.engine_manager.processes[0].pid)
    assert {core.ppid(), psutil.Process(engine._constraints._process.pid).ppid()} == {server}
    (worker,) = core.children()
    cores = os.cpu_count() or 1
    assert len(worker.cpu_affinity()) == max(1, cores - 1), "vLLM leaves a core to its scheduler"
