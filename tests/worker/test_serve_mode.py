"""Which way jobs come, from what RunPod sets and from SERVE_MODE."""

from __future__ import annotations

import pytest

from llmpod.worker import environ
from llmpod.worker.errors import StartError

TAKE = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:1/job-take/$ID"}
POD = {"RUNPOD_POD_ID": "pod"}


@pytest.mark.parametrize(
    ("variables", "kind", "host"),
    [
        ({}, "one job", "127.0.0.1"),
        (TAKE, "queue", "127.0.0.1"),
        (TAKE | POD, "queue", "0.0.0.0"),
        ({"PORT": "80", "PORT_HEALTH": "80"} | POD, "http", "0.0.0.0"),
        ({"PORT": "80", "PORT_HEALTH": "80"} | POD | TAKE, "http", "0.0.0.0"),
        ({"PORT": "5000", "PORT_HEALTH": "5001"}, "http", "127.0.0.1"),
        ({"PORT": "80"} | POD, "http", "0.0.0.0"),
        ({"PORT": "80"} | POD | TAKE, "queue", "0.0.0.0"),
        ({"PORT": "3000"}, "one job", "127.0.0.1"),  # a variable that shells and other tools set
        (POD, "one job", "0.0.0.0"),
        ({"SERVE_MODE": "http"}, "http", "127.0.0.1"),
        ({"SERVE_MODE": "HTTP", "BIND_HOST": "0.0.0.0"}, "http", "0.0.0.0"),
        ({"SERVE_MODE": "http"} | TAKE, "http", "127.0.0.1"),
        ({"SERVE_MODE": "queue", "PORT_HEALTH": "80"}, "queue", "127.0.0.1"),
        ({"SERVE_MODE": "auto"}, "one job", "127.0.0.1"),
    ],
)
def test_the_mode_follows_what_runpod_sets(
    clean_environment: pytest.MonkeyPatch, variables: dict[str, str], kind: str, host: str
) -> None:
    for name in ("PORT", "PORT_HEALTH", "SERVE_MODE", "BIND_HOST"):
        clean_environment.delenv(name, raising=False)
    for name, value in variables.items():
        clean_environment.setenv(name, value)
    mode = environ.load().mode
    assert (mode.kind, mode.host) == (kind, host)
    assert mode.reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("PORT_HEALTH", "-1"),
        ("SERVE_MODE", "lb"),
        ("SERVER_MODE", "http"),
        ("HEALTH_CHECK_PATH", "ping"),
        ("MAX_BODY_BYTES", "1"),
    ],
)
def test_a_wrong_value_stops_the_start(clean_environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    clean_environment.setenv(name, value)
    with pytest.raises(StartError):
        environ.load()
