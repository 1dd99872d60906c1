"""Markers by what a test uses (pyproject.toml says what each means), and the check that none is forgotten."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any-machine", deadline=None)  # a busy one may take any time
hypothesis.settings.load_profile("any-machine")

MARKERS = ("process", "engine", "browser")

_unmarked: str | None = None  # the running test, if it has none of MARKERS


def _refuse_interpreters(event: str, arguments: tuple[object, ...]) -> None:
    """A small program such as a script that stands for nvidia-smi is fast; another interpreter is not."""
    if event == "subprocess.Popen" and _unmarked is not None and Path(str(arguments[0])).name.startswith("python"):
        raise RuntimeError(f"{_unmarked} starts a process: give it one of the markers {', '.join(MARKERS)}")


sys.addaudithook(_refuse_interpreters)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the session's engine."""
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Know the running test."""
    global _unmarked
    _unmarked = None if any(map(item.get_closest_marker, MARKERS)) else item.nodeid
    try:
        return (yield)
    finally:
        _unmarked = None
