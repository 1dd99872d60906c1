"""`python handler.py` on this machine, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.worker.processes import environment

pytestmark = pytest.mark.engine

REPOSITORY = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


def run(*arguments: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "handler.py"), *arguments],
        cwd=cwd,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def events(done: subprocess.CompletedProcess[str]) -> list[Json]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ts"')]


@pytest.mark.slow
def test_without_arguments_the_demo_answers_test_input() -> None:
    done = run(MAX_NUM_BATCHED_TOKENS="512", LOADING_REPORT_SECONDS="1000")
    assert done.returncode == 0, done.stderr[-2000:]
    names = [event["event"] for event in events(done)]
    assert names == ["environment", "preflight", "setting_corrected", "loading", "warm_up", "ready", "start", "end"]
    _, _, corrected, _, _, ready, start, end = events(done)
    assert (corrected["setting"], corrected["given"]) == ("MAX_NUM_BATCHED_TOKENS", "512")
    assert ready["max_num_batched_tokens"] >= ready["max_model_len"] == int(corrected["used"])
    assert (start["stream"], end["outcome"], end["finish_reason"]) == (True, "ok", "stop")
    # Between the two lines: the answer as it came, then the rest of the reply.
    between = done.stdout[done.stdout.index('"event":"start"') :].split("\n", 1)[1]
    answer, reply = between.split("\n{\n", 1)
    assert len(answer) > 100
    assert json.loads("{\n" + reply[: reply.index("\n}\n") + 2])["usage"]["output"] == end["tokens_generated"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "test_input.json does not exist."),
        ("{", "test_input.json is not JSON"),
        ("[1]", "test_input.json is not a job"),
        ('{"prompt": "a"}', "test_input.json is not a job"),
        ("\xff", "test_input.json cannot be read"),
        ("[" * 100_000, "test_input.json is not JSON"),
    ],
)
def test_a_missing_or_malformed_file_is_one_line_and_exit_1(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "test_input.json").write_bytes(content.encode("latin-1"))
    done = run(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    [line] = done.stdout.splitlines()
    assert json.loads(line)["event"] == "fatal"
    assert says in json.loads(line)["cause"]


def test_a_malformed_argument_is_one_line_and_exit_1() -> None:
    done = run("--test_input", "{nope")
    assert (done.returncode, done.stderr) == (1, "")
    assert "--test_input is not JSON" in json.loads(done.stdout)["cause"]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MAX_NUM_BATCHED_TOKENS": "abc"}, "MAX_NUM_BATCHED_TOKENS='abc'"),
        ({"MAX_MODEL_LENGTH": "1024"}, "MAX_MODEL_LENGTH is not a setting; MAX_MODEL_LEN is."),
        ({"PROFILE": "carreer"}, "PROFILE=carreer"),
        ({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job-take/$ID"}, "MODEL_NAME is not set."),
        ({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job-take/$ID", "MODEL_NAME": ""}, "MODEL_NAME is not set."),
        ({"MODEL_PATH": "/models/qwen2-7b-career"}, "MODEL_PATH is not a setting; MODEL_NAME is."),
    ],
)
def test_a_bad_setting_stops_the_start_in_one_line_before_anything_is_loaded(
    variables: dict[str, str], says: str
) -> None:
    done = run(**variables)
    assert (done.returncode, done.stderr) == (1, "")
    [line] = done.stdout.splitlines()
    fatal = json.loads(line)
    assert says in fatal["cause"]
    assert fatal["cure"]
