"""The order of imports: which folder may import which, and that importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "llmpod"

# Of each package: its folders, lowest first. A folder may import itself and what stands before it; "" are the package's
# own modules but those that are named, which stand above the folders. docs/architecture.md says what each owns.
ORDER: dict[str, tuple[str, ...]] = {
    "worker": (
        "",
        "profile",
        "jobs",
        "metrics",
        "engine",
        "routes",
        "worker.py",
        "worker_start.py",
        "local_run.py",
        "lifecycle.py",
        "queue",
        "http",
        "__main__.py",
    ),
    "endpoint": (
        "",
        "state",
        "fleet",
        "api",
        "observe",
        "running.py",
        "balancer",
        "endpoint.py",
        "cli.py",
        "__init__.py",
        "__main__.py",
    ),
    "loadtest": (
        "",
        "model",
        "run",
        "watch",
        "smoke",
        "analysis",
        "capacity",
        "quality",
        "report",
        "cli",
        "__main__.py",
    ),
    "plan": ("errors.py", "cache_layers.py", "weights.py", "source.py", "memory.py", "gpus.py", "", "cli.py"),
}
MAY_IMPORT = {"worker": {"plan"}}
"""The one exception from the rule that a package imports no other: the worker estimates its model before it starts."""


def modules(package: str) -> list[Path]:
    return sorted((SOURCE / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, inside functions too; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place_of(package: str, relative: Path) -> str:
    """The entry of ORDER that a module of a package belongs to."""
    if len(relative.parts) > 1:
        return relative.parts[0]
    return relative.name if relative.name in ORDER[package] else ""


def module_file(name: str) -> Path | None:
    """The file of a module of this distribution, from its dotted name."""
    path = SOURCE.joinpath(*name.split(".")[1:])
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_no_other(package: str) -> None:
    others = tuple(f"llmpod.{other}" for other in ORDER if other not in {package, *MAY_IMPORT.get(package, ())})
    for path in modules(package):
        assert not [name for name in imports(path) if name.startswith(others)], path


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_imports_only_what_stands_before_it(package: str) -> None:
    order = ORDER[package]
    backwards = []
    for path in modules(package):
        own = place_of(package, path.relative_to(SOURCE / package))
        for name in imports(path):
            imported = module_file(name) if name.startswith(f"llmpod.{package}.") else None
            if imported is None:
                continue
            place = place_of(package, imported.relative_to(SOURCE / package))
            if order.index(place) > order.index(own):
                backwards.append(f"{path.relative_to(SOURCE)} ({own or 'base'}) imports {name} ({place})")
    assert not backwards


@pytest.mark.parametrize("package", ORDER)
def test_every_folder_has_its_place_and_says_what_it_owns(package: str) -> None:
    folders = {path.parent for path in modules(package)} - {SOURCE / package}
    assert {folder.relative_to(SOURCE / package).parts[0] for folder in folders} <= set(ORDER[package])
    for folder in folders:
        documentation = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert documentation, f"{folder}/__init__.py says nothing"


@pytest.mark.parametrize(("package", "folder"), [("vllm", "engine"), ("runpod", "queue")])
def test_only_one_folder_imports(package: str, folder: str) -> None:
    importers = {
        path.relative_to(SOURCE / "worker").parts[0]
        for path in modules("worker")
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert importers == {folder}


def test_only_one_module_of_the_worker_reads_the_environment() -> None:
    readers = set()
    for path in modules("worker"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_read = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
            if is_read and isinstance(node.value, ast.Name) and node.value.id == "os":
                readers.add(path.name)
    assert readers == {"environ.py"}


@pytest.mark.process
def test_importing_the_worker_has_no_side_effect() -> None:
    # The SDK reads the environment when it is imported, so the folder that imports it comes last, on RunPod.
    names = [
        "llmpod." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in modules("worker")
        if path.name != "__init__.py" and path.parent.name != "queue"
    ]
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
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE.parent)},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
