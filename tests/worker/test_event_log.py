"""The log: a JSON object per line, and nothing a job could fail by."""

from __future__ import annotations

import ast
import io
import json
import logging
import logging.config
import re
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from llmpod.worker.event_log import EventLog, JsonLogHandler, describe, logging_config


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_a_time() -> None:
    stream = io.StringIO()
    EventLog(stream).emit("ready", model="m", text="two\nlines", nothing=None)
    [event] = lines(stream)
    assert list(event) == ["ts", "event", "model", "text"]
    assert event["ts"].endswith("Z")
    assert event["text"] == "two\nlines"


class FullDisk(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_costs_the_line_and_is_told_when_there_is_room() -> None:
    stream = FullDisk()
    log = EventLog(stream)
    log.emit("start")
    log.emit("end")
    stream.full = False
    log.emit("start")
    log.emit("end")
    first, second = lines(stream)
    assert first["lost_lines"] == 2
    assert "lost_lines" not in second


def test_a_closed_stdout_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    log = EventLog(closed)
    log.emit("start")
    assert log.lost == 1
    monkeypatch.setattr(sys, "stdout", None)
    EventLog().emit("start")


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: 2},
        float("nan"),
        "\ud800",
        2**70,
        -(10**5000),
        b"bytes",
        Path("/x"),
        {"a": {3, 4}},
        {"requested": None, "effective": 10**20},
        nested(100_000),
        Unspeakable(),
        {Unspeakable(): [Unspeakable()]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_costs_an_event(value: object) -> None:
    stream = io.StringIO()
    log = EventLog(stream)
    log.emit("end", request_id="job-1", value=value)
    log.emit("end")
    first, second = lines(stream)
    assert (first["event"], first["request_id"]) == ("end", "job-1")
    assert "value" in first or value is None
    assert "lost_lines" not in second


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("url='https://api.runpod.ai/v2/e/job-take/w?gpu=a&token=SECRET&x=SECRET'", "job-take/w?…'"),
        ("GET http://u:SECRET@host/a#SECRET failed", "GET http://host/a?… failed"),
        ('{"a": "wss://host?SECRET"} ?', "wss://host?…"),
        ("https://host/a/b and ?c=d", "https://host/a/b and ?c=d"),
        ("what? http://x/", "what? http://x/"),
    ],
)
def test_an_address_is_written_without_what_may_be_a_key(text: str, written: str) -> None:
    stream = io.StringIO()
    EventLog(stream).emit("log", message=text, nested=[{"deep": text}])
    [event] = lines(stream)
    assert written in event["message"]
    assert event["nested"][0]["deep"] == event["message"]
    assert "SECRET" not in stream.getvalue()


async def test_an_exception_of_a_call_is_described_without_its_address() -> None:
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{closed.getsockname()[1]}/take?token=SECRET"
    async with aiohttp.ClientSession() as session:
        for url in (
            address,
            "http://no.such.host.invalid/take?token=SECRET",
            "htp://x?token=SECRET",
            "http://[x?SECRET",
        ):
            with pytest.raises((aiohttp.ClientError, ValueError)) as caught:
                await session.get(url)
            said = describe(caught.value)
            assert said.startswith(type(caught.value).__name__)
            assert "SECRET" not in said
            assert "://" not in said
    closed.close()
    request = RequestInfo(URL(address), "GET", CIMultiDictProxy(CIMultiDict()))
    error = aiohttp.ClientResponseError(request, (), status=401)
    assert "SECRET" in str(error)
    assert describe(error) == "ClientResponseError: HTTP 401"
    assert describe(OSError(28, "No space left on device")) == "OSError: No space left on device"


def test_other_libraries_records_take_our_form() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("somebody.else")
    logger.propagate = False
    logger.addHandler(JsonLogHandler(EventLog(stream)))
    try:
        raise ValueError("inner")
    except ValueError:
        logger.exception("It %s", "failed")
    logger.error("bad %d", "x")
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"]) == ("log", "error", "somebody.else")
    assert first["message"] == "It failed"
    assert first["error"] == "ValueError: inner"
    assert second["message"] == "bad %d"


def test_errors_of_the_engines_processes_are_kept_for_the_diagnosis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error_log = tmp_path / "errors.log"
    before = logging.root.handlers[:], logging.root.level
    try:
        logging.config.dictConfig(logging_config("ERROR", error_log, tmp_path / "milestones.log"))
        logging.getLogger("vllm.v1.engine.core").error("EngineCore failed to start: no memory")
        logging.getLogger("vllm.v1.engine.core").warning("never mind")
        assert error_log.read_text().splitlines() == ["EngineCore failed to start: no memory"]
        assert json.loads(capsys.readouterr().err)["message"] == "EngineCore failed to start: no memory"
    finally:
        logging.root.handlers[:], logging.root.level = before
        for name in ("vllm", "torch"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


def test_a_secret_in_a_variable_is_in_no_line_whoever_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_abcdefgh1234",
        "MY_API_KEY": 'quo"ted\\secret',
        "DB_PASSWORD": "correct horse",
        "S3_SECRET": "zwölf",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    log = EventLog(stream)
    log.emit("log", message=f"GET with {secrets['HF_TOKEN']}", nested={"a": [secrets["MY_API_KEY"], "b"]})
    logger = logging.Logger("somebody")
    logger.addHandler(JsonLogHandler(log))
    logger.error("the password is %s, in words", secrets["DB_PASSWORD"])
    first, second = lines(stream)
    assert first["message"] == "GET with …"
    assert first["nested"] == {"a": ["…", "b"]}
    assert second["message"] == "the password is …, in words"


def test_what_is_no_secret_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("MAX_TOKENS_MAX", "1000000000"),
        ("TOKENIZER", "owner/tokenizer"),
        ("X_TOKEN", "12345678"),  # a number may stand in any line
        ("SHORT_KEY", "local"),
    ):
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    EventLog(stream).emit("log", message="owner/tokenizer local", size=12345678, most=1000000000)
    [event] = lines(stream)
    assert (event["message"], event["size"], event["most"]) == ("owner/tokenizer local", 12345678, 1000000000)


def test_every_event_is_documented() -> None:
    root = Path(__file__).resolve().parents[2]
    emitted = set()
    for path in (root / "src" / "llmpod" / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name.lstrip("_") == "emit" and isinstance(node.args[0].value, str):
                emitted.add(node.args[0].value)
    assert {"start", "end", "ready", "bug", "draining"} <= emitted
    documented = set(re.findall(r"`([a-z_]+)`", (root / "docs" / "events.md").read_text()))
    assert emitted <= documented, emitted - documented
