"""The log: a JSON object per line, and nothing a job could fail by."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.events import EventLog, JsonLogHandler, logging_config


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


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, float("nan"), "\ud800", 2**70, b"bytes", Path("/x"), {"a": {3, 4}}]
)
def test_no_value_makes_an_event_fail(value: object) -> None:
    stream = io.StringIO()
    log = EventLog(stream)
    log.emit("end", value=value)
    log.emit("end")
    assert lines(stream)[-1]["event"] == "end"


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
    last_words = tmp_path / "last-words.log"
    before = logging.root.handlers[:], logging.root.level
    try:
        logging.config.dictConfig(logging_config("ERROR", last_words))
        logging.getLogger("vllm.v1.engine.core").error("EngineCore failed to start: no memory")
        logging.getLogger("vllm.v1.engine.core").warning("never mind")
        assert last_words.read_text().splitlines() == ["EngineCore failed to start: no memory"]
        assert json.loads(capsys.readouterr().err)["message"] == "EngineCore failed to start: no memory"
    finally:
        logging.root.handlers[:], logging.root.level = before
        for name in ("vllm", "torch"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
