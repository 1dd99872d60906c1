"""What the layout promises: who may import what, and that importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
BUILDINGS = ("worker", "endpoint", "loadtest")


def modules(building: str) -> list[Path]:
    return sorted((SOURCE / "llmpod" / building).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("building", BUILDINGS)
def test_a_building_imports_no_other(building: str) -> None:
    others = tuple(f"llmpod.{other}" for other in BUILDINGS if other != building)
    for path in modules(building):
        assert not [name for name in imports(path) if name.startswith(others)], path


def test_only_the_engine_and_its_parts_import_vllm() -> None:
    importers = {path.name for path in modules("worker") if any(n.split(".")[0] == "vllm" for n in imports(path))}
    assert importers == {
        "engine.py",
        "application.py",
        "engine_arguments.py",
        "engine_input.py",  # decodes a request as the engine's process does
        "renderer.py",  # a class of vLLM's renderers with the guardrails in it: vLLM's registry is the seam
        "sampling.py",
        "constraint_process.py",  # compiles as the engine's process does, in a process of its own
    }


def test_only_settings_read_the_environment() -> None:
    readers = set()
    for path in modules("worker"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"):
                readers.add(path.name)
    assert readers == {"settings.py"}


def test_importing_the_worker_has_no_side_effect() -> None:
    # The SDK reads the environment when it is imported, so these come last, on RunPod.
    needs_sdk = ("jobloop", "sdk", "takes")
    names = [f"llmpod.worker.{path.stem}" for path in modules("worker") if path.stem not in ("__init__", *needs_sdk)]
    program = f"""
import os, sys, threading
before = dict(os.environ)
for name in {names!r}:
    __import__(name)
assert dict(os.environ) == before, "the environment changed"
assert threading.active_count() == 1, "a thread was started"
heavy = sorted({{"vllm", "torch", "transformers", "runpod"}} & set(sys.modules))
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
