"""What the load tester's tests share: runs in this process against a scripted server, and runs of the door itself."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmpod.loadtest.analysis import validity
from llmpod.loadtest.cli import commands, main
from llmpod.loadtest.cli.session import resume as go_on
from llmpod.loadtest.cli.session import run
from llmpod.loadtest.environ import Environment, Secret
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.run_files import Recorded
from llmpod.loadtest.options import ResumeOptions

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"


@dataclass
class Result:
    """One run: its exit code, run.json, and the records read back from disk."""

    code: int
    directory: Path
    report: dict[str, Any]
    recorded: Recorded

    @property
    def phase(self) -> dict[str, Any]:
        return self.report["phases"][0]

    @property
    def measured(self) -> list[Any]:
        return sorted((job for job in self.recorded.jobs if job.role == "measured"), key=lambda job: job.index)

    def p(self, metric: str, p: float, phase: int = 0) -> float:
        return next(q["value"] for q in self.report["phases"][phase]["rows"][metric]["quantiles"] if q["p"] == p)


def result_of(code: int, directory: Path) -> Result:
    return Result(code, directory, json.loads((directory / run_files.RUN).read_text()), run_files.read(directory))


def environment(key: str = "") -> Environment:
    return Environment(api_key=Secret(key), endpoint_id=None, plain=True)


@pytest.fixture(autouse=True)
def a_busy_machine_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be slow: the validity of a run is the subject of tests of its own."""
    monkeypatch.setattr(validity, "LAG_MS", 60_000.0)


@pytest.fixture
def load_test(tmp_path: Path) -> Callable[..., Awaitable[Result]]:
    """`await load_test(url, "--runs", "5", …)`: a run in this process, quiet, with its files in a folder of its own."""
    count = 0

    async def go(url: str, *words: str, key: str = "") -> Result:
        nonlocal count
        count += 1
        directory = tmp_path / f"run{count}"
        argv = ["--base-url", url, "--out", str(directory), "--format", "quiet", "--health-interval", "0.2", *words]
        _, chosen = commands.parse(argv)
        code = await run(chosen, environment(key))
        return result_of(int(code), directory)

    return go


@pytest.fixture
def resume() -> Callable[[Path], Awaitable[Result]]:
    async def go(directory: Path) -> Result:
        code = await go_on(ResumeOptions(directory=str(directory), ui="none"), environment())
        return result_of(int(code), directory)

    return go


@dataclass
class Ended:
    code: int
    out: str
    err: str


async def door(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 60) -> Ended:
    """`python rp_load_test.py …` as a person runs it."""
    process = await start_door(*words, env=env, cwd=cwd)
    async with asyncio.timeout(timeout_s):
        out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def start_door(
    *words: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "rp_load_test.py"),
        *words,
        env={**clean, **(env or {})},
        cwd=cwd or ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def command(*words: str, entry: Callable[[Sequence[str]], int] = main.main) -> Ended:
    """A command that needs no event loop (report, compare, capacity), in this process, which is a second faster."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = entry(words)
    return Ended(code, out.getvalue(), err.getvalue())
