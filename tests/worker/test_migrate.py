"""docs/migrate.md: every row of its tables is what happens."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs

from llmpod.worker import environ
from llmpod.worker.engine.sampling import Sampling
from llmpod.worker.engine.start.engine_options import NOT_FROM_ENVIRONMENT
from llmpod.worker.errors import JobError, StartError
from llmpod.worker.jobs import inputs, native_reply
from llmpod.worker.jobs.engine_output import Delta, Usage
from llmpod.worker.jobs.limits import MaxTokens

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrate.md").read_text(encoding="utf-8")
SAMPLING = Sampling({}, 100).names


def rows(title: str) -> list[tuple[str, str]]:
    """The first two cells of every row under a heading: what is there, and what is here."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [re.split(r" \| ?", line.removeprefix("| ")) for line in section.splitlines() if line.startswith("| `")]
    return [(there.strip("`"), here) for there, here, *_ in cells]


INPUTS, OUTPUTS, SETTINGS = rows("Inputs"), rows("Outputs"), rows("Settings")


def test_the_tables_are_found() -> None:
    assert len(INPUTS) > 35
    assert len(OUTPUTS) > 10
    assert len(SETTINGS) > 40


@pytest.mark.parametrize(("there", "here"), INPUTS)
def test_an_input_of_the_other_worker_does_what_the_page_says(there: str, here: str) -> None:
    job_input = json.loads(there)
    if here == "400":
        with pytest.raises(JobError) as caught:
            inputs.parse(job_input, SAMPLING)
        assert caught.value.failure.status == 400
        return
    request = inputs.parse(job_input, SAMPLING)
    if not isinstance(request, inputs.NativeRequest):
        assert here == "the same"
        return
    given = [name for name in (job_input.get("sampling_params") or job_input) if name != "prompt"]
    if here == "the same":
        assert request.adapted == {}
    elif here == "ignored":
        assert [path.rsplit(".", 1)[-1] for path in request.adapted["ignored"]] == given
        assert request.sampling == {}
    else:
        assert request.adapted["moved"] == {given[0]: here.strip("`")}


def found(path: str, reply: Any) -> Any:
    for step in re.findall(r"\w+", path):
        reply = reply[int(step) if step.isdigit() else step]
    return reply


@pytest.mark.parametrize(("there", "here"), OUTPUTS)
def test_an_output_has_what_the_page_says_where_it_says(there: str, here: str) -> None:
    assert there.startswith("output[0].")
    request = inputs.parse({"prompt": "Hi"}, SAMPLING)
    assert isinstance(request, inputs.NativeRequest)
    answer = native_reply.Answer()
    reply = answer.add([Delta(0, "Hello", "stop")])
    reply |= native_reply.ending(request, answer, Usage(3, 2, None), MaxTokens(None, 150, "default"), "demo", "id-1")
    expected = {"choices[0].text": "Hello", "choices[0].finish_reason": "stop", "model": "demo", "request_id": "id-1"}
    expected |= {"usage.input": 3, "usage.output": 2, "usage.total": 5}
    assert found(here.strip("`"), reply) == expected[here.strip("`")]
    assert reply["text"] == "Hello"


@pytest.mark.parametrize(("there", "here"), SETTINGS)
def test_a_setting_of_the_other_worker_does_what_the_page_says(
    there: str, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = there.partition("=")
    variables = {name: value}
    monkeypatch.setattr(environ.os, "environ", variables)
    if here == "stops the start":
        with pytest.raises(StartError, match=name):
            environ.load(variables)
        return
    corrections = environ.load(variables).corrections
    ours = environ.names().get(name)
    if here == "the same":
        assert corrections == ()
        arguments = {field.name for field in dataclasses.fields(AsyncEngineArgs)} - NOT_FROM_ENVIRONMENT.keys()
        of_libraries = name in ("HF_TOKEN", "PYTORCH_ALLOC_CONF", "VLLM_USE_DEEP_GEMM")
        of_the_application = name in ("TOOL_CALL_PARSER", "ENABLE_AUTO_TOOL_CHOICE")
        assert ours or name.lower() in arguments or of_libraries or of_the_application
    elif here in ("ignored", "unset"):
        assert [(one.setting, one.used) for one in corrections] == [(name, None)]
    else:
        assert ours == here.strip("`").lower()
