"""docs/operations.md and ops/: the configuration with its reasons, the division of traffic, the runbook's entries."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from builder.runbook import causes
from llmpod.loadtest.cli import commands
from llmpod.worker.engine.start.diagnosis import STARTUP_ERROR_RULES
from llmpod.worker.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
ENDPOINT = json.loads((ROOT / "ops" / "endpoint.json").read_text())
TO_PUT_IN = {"name", "templateId", "computeType"}


def test_every_value_of_the_endpoints_configuration_has_its_reason() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \| .{20,} \|$", PAGE, re.MULTILINE))
    assert {name: json.loads(value) for name, value in rows.items() if name in ENDPOINT} == {
        name: value for name, value in ENDPOINT.items() if name not in TO_PUT_IN
    }


def test_the_endpoints_configuration_is_within_runpods_bounds_and_suits_the_hub_files() -> None:
    assert 0 <= ENDPOINT["workersMin"] <= ENDPOINT["workersMax"]
    assert ENDPOINT["scalerType"] in ("QUEUE_DELAY", "REQUEST_COUNT")
    assert 1 <= ENDPOINT["idleTimeout"] <= 3600
    assert ENDPOINT["executionTimeoutMs"] >= 5000
    hub = json.loads((ROOT / ".runpod" / "hub.json").read_text())["config"]
    assert ENDPOINT["allowedCudaVersions"] == hub["allowedCudaVersions"]


def test_traffic_is_divided_as_the_weights_say_and_a_user_stays_where_he_is() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(re.sub(r"^ {3}", "", program, flags=re.MULTILINE), names)
    endpoint_for = names["endpoint_for"]
    counts = Counter(endpoint_for(f"user-{number}") for number in range(4000))
    assert set(counts) == set(names["WEIGHTS"])
    for name, weight in names["WEIGHTS"].items():
        assert abs(counts[name] / 4000 - weight / 100) < 0.03
    assert endpoint_for("user-1") == endpoint_for("user-1")


def test_the_runbook_has_every_cause_of_a_failed_start() -> None:
    table = causes()
    assert table in PAGE
    assert table.count("\n| ") - 1 == len(STARTUP_ERROR_RULES)
    other = {"HF_TOKEN", "HF_HOME", "LOAD_FORMAT", "MAX_NUM_BATCHED_TOKENS"}
    settings = {name.upper() for name in Settings.model_fields} | other
    assert {rule.setting for rule in STARTUP_ERROR_RULES if rule.setting} <= settings


def test_the_load_testers_commands_in_the_steps_take_what_they_are_given() -> None:
    lines = re.findall(r"^ +llmpod loadtest (.+)$", PAGE, re.MULTILINE)
    assert len(lines) >= 3
    assert [commands.parse(shlex.split(line))[0] for line in lines] == ["smoke", "run", "compare"]


def test_what_the_page_says_of_defaults_is_so() -> None:
    drain = re.search(r"`DRAIN_SECONDS` \((\d+)\)", PAGE)
    assert drain is not None
    assert float(drain[1]) == Settings.model_fields["drain_seconds"].default
