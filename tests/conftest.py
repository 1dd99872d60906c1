"""Markers by what a test uses.

`make test-fast` leaves out what takes long, and `make test` runs two tests at a time where they do not compete for the
processor.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WITHOUT_PROCESSES = (
    *("endpoint/test_routing.py", "endpoint/test_rules.py", "endpoint/test_store.py"),
    *("loadtest/test_pure.py", "loadtest/test_quality.py"),
    "worker/http/test_form.py",
    "worker/http/test_json_size.py",
)
"""Of the folders whose other tests serve, run workers or send a load."""
PROCESSES = (
    *("endpoint", "loadtest", "worker/test_chaos.py", "worker/test_cleanup.py", "worker/test_demo_model.py"),
    *("worker/test_entry.py", "worker/engine/test_constraints.py", "worker/engine/test_cpu_fork_server.py"),
    *("worker/engine/test_lora.py", "worker/engine/test_parsers.py", "worker/engine/test_start.py", "worker/queue"),
    *("test_monitoring.py", "worker/http", "worker/metrics/test_ways_out.py"),
    *("worker/routes/test_clients.py", "worker/routes/test_media_model.py"),
)
"""Tests that start processes, serve, or need an engine of their own."""


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)
        name = item.path.relative_to(TESTS).as_posix()
        if name.startswith(PROCESSES) and name not in WITHOUT_PROCESSES:
            item.add_marker(pytest.mark.process)
        if name.startswith("worker/") and any(map(item.get_closest_marker, ("engine", "process"))):
            item.add_marker(pytest.mark.serial)
