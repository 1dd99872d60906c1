"""A worker leaves nothing: no temporary files, and no process, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from llmpod.worker import scratch
from tests.worker.processes import REPOSITORY

pytestmark = pytest.mark.engine

PROCESS = """
import multiprocessing, os, signal, sys, tempfile, time
from llmpod.worker import scratch, shutdown

def wait():
    time.sleep(600)

def wait_with_a_child():
    multiprocessing.get_context("fork").Process(target=wait).start()
    wait()

if __name__ == "__main__":
    shutdown.children_end_with_this_process()
    scratch.claim()
    tempfile.mkstemp()
    if "fork" in sys.argv or "forkserver" in sys.argv:
        context = multiprocessing.get_context(sys.argv[1])
        if sys.argv[1] == "forkserver":
            context.set_forkserver_preload(["llmpod.worker.engine.start.cpu_fork_server_preload"])
        child = context.Process(target=wait_with_a_child)
        child.start()
    print(tempfile.gettempdir(), flush=True)
    if "leave_now" in sys.argv:
        shutdown.leave_now(0)
    if "exit" not in sys.argv:
        sys.stdin.read()
"""


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has claimed a temporary folder below `folder`, and that folder."""
    script = folder.parent / "process.py"
    script.write_text(PROCESS)
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY / "src"), "HOME": str(folder.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: a socket's path is limited."""
    path = Path(f"/tmp/t{os.getpid()}/t")
    path.mkdir(parents=True)
    yield path
    subprocess.run(["rm", "-rf", str(path.parent)], check=True)


@pytest.mark.parametrize("how", ["exit", "leave_now"])
def test_temporary_files_go_with_the_worker(folder: Path, how: str) -> None:
    with running(folder, how) as (process, mine):
        assert mine.parent == folder
        assert process.wait(30) == 0
    assert list(folder.iterdir()) == []


def test_what_a_killed_worker_left_is_removed_by_the_next_and_that_of_a_living_one_is_not(folder: Path) -> None:
    unknown = folder / f"{scratch.PREFIX}being-made"
    unknown.mkdir()
    (folder / "somebody-elses").mkdir()
    with running(folder) as (killed, left), running(folder) as (_, living):
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        assert list(left.iterdir())
        with running(folder, "exit") as (process, _):
            process.wait(30)
        assert not left.exists()
        assert living.exists()
    with running(folder, "exit") as (process, _):
        process.wait(30)
    assert {path.name for path in folder.iterdir()} == {unknown.name, "somebody-elses"}


def test_a_folder_whose_sockets_would_have_too_long_names_is_not_used(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with running(long, "exit") as (process, used):
        assert process.wait(30) == 0
    assert used == long


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_whatever_a_killed_worker_had_forked_ends_with_it(folder: Path, method: str) -> None:
    with running(folder, method) as (process, _):
        worker = psutil.Process(process.pid)
        wanted = 2 if method == "fork" else 3  # the server, a child and its child
        while sum("tracker" not in str(one.cmdline()) for one in worker.children(recursive=True)) < wanted:
            assert process.poll() is None
        family = worker.children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ">&- 2>&- <&-"])
def test_a_worker_with_closed_streams_has_no_traceback(closed: str) -> None:
    command = f"{sys.executable} {REPOSITORY / 'handler.py'} --test_input '{{nope' {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
