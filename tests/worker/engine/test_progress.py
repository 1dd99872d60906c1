"""Progress of a start: never silent for long, and what it says is what happens."""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from llmpod.worker.engine.start import hub
from llmpod.worker.engine.start.hub import Repository
from llmpod.worker.engine.start.progress import MILESTONES, Progress
from llmpod.worker.event_log import MilestoneHandler
from tests.worker.conftest import Events
from tests.worker.loopback_hub import Hub

# What vLLM 0.32 logs on a GPU, in its order; the figures are made up.
GPU_START = """\
1.000 Initializing a V1 LLM engine (v0.32.0) with config: model='x'
2.000 Starting to load model Qwen/Qwen2.5-7B-Instruct...
62.000 Time spent downloading weights for Qwen/Qwen2.5-7B-Instruct: 58.500000 seconds
70.000 Loading weights took 7.50 seconds
71.000 Model loading took 14.25 GiB memory and 69.000000 seconds
72.000 Starting torch.compile
90.000 torch.compile took 18.25 s in total
91.000 Available KV cache memory: 5.50 GiB
92.000 Compile and warming up model for size 8
93.000 Graph capturing finished in 21 secs, took 0.50 GiB
94.000 init engine (profile, create kv cache, warmup model) took 40.00 s
"""


@pytest.fixture
def milestones(tmp_path: Path) -> Path:
    return tmp_path / "milestones.log"


def test_every_milestone_is_a_line_of_the_installed_vllm() -> None:
    """The text before a pattern's first group stands in vLLM's source: the day it moves, this says which."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    folders = ("v1/worker", "model_executor/model_loader", "compilation")
    source = "\n".join(path.read_text() for folder in folders for path in (package / folder).glob("*.py"))
    for milestone in MILESTONES:
        words = milestone.pattern.replace("\\", "").split(".*")[0].split("(")[0].strip()
        assert words in source, milestone.pattern


def test_the_phases_and_the_memory_of_a_start_on_a_gpu_are_read_from_what_vllm_says(
    events: Events, milestones: Path
) -> None:
    progress = Progress(events.emit, 60, milestones)
    seen = []
    with progress.phase("load"):
        text = ""
        for line in GPU_START.splitlines():
            text += line + "\n"
            milestones.write_text(text)
            progress.report()
            seen.append(events.all[-1]["phase"])
            assert events.all[-1]["doing"] == line.partition(" ")[2]
    assert [phase for i, phase in enumerate(seen) if i == 0 or phase != seen[i - 1]] == [
        *("load", "weights", "profile", "compile", "profile", "compile", "profile")
    ]
    taken = progress.start_ms()
    assert taken["load"] >= 0
    del taken["load"]
    assert taken == {"download": 58500, "weights": 7500, "compile": 18250, "capture": 21000}
    assert progress.memory_mib() == {"weights": 14592, "kv_cache": 5632}


def test_several_gpus_report_each_and_count_once(events: Events, milestones: Path) -> None:
    milestones.write_text("1.0 torch.compile took 10.0 s in total\n1.1 torch.compile took 12.0 s in total\n")
    assert Progress(events.emit, 60, milestones).start_ms() == {"compile": 12000}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"no stamp\n\n 1.0\n1.0", b"1.0 " + b"x" * 100_000])
def test_no_content_of_the_file_costs_a_report(events: Events, milestones: Path, content: bytes) -> None:
    milestones.write_bytes(content)
    progress = Progress(events.emit, 60, milestones)
    with progress.phase("load"):
        progress.report()
    assert events.all[0]["phase"] == "load"
    assert len(events.all[0].get("doing") or "") <= 200


def test_silence_is_never_longer_than_the_period_and_ends_with_the_start(events: Events, milestones: Path) -> None:
    heard = threading.Event()

    def emit(event: str, **fields: object) -> None:
        events.emit(event, **fields)
        if len(events.all) >= 3:
            heard.set()

    progress = Progress(emit, 0.02, milestones)
    progress.subject = {"model": "m"}
    progress.start()
    with progress.phase("import"):
        assert heard.wait(10), "the thread says nothing while this one is busy"
    progress.stop()
    said = len(events.all)
    assert {event["event"] for event in events.all} == {"loading"}
    assert {event["phase"] for event in events.all} <= {"import", "checks"}
    assert events.all[-1]["model"] == "m"
    assert events.all[-1]["seconds"] >= events.all[0]["seconds"]
    time.sleep(0.1)
    assert len(events.all) == said
    progress.stop()


def test_vllms_lines_reach_the_file_and_no_more_of_them_than_a_start_has(tmp_path: Path, events: Events) -> None:
    file = tmp_path / "lines.log"
    handler = MilestoneHandler(str(file))
    logger = logging.Logger("vllm.test")
    logger.addHandler(handler)
    logger.info("Starting to load model %s...\nof two lines", "owner/model")
    for number in range(2 * MilestoneHandler.LINES):
        logger.info("line %d", number)
    handler.close()
    lines = file.read_text().splitlines()
    assert len(lines) == MilestoneHandler.LINES
    assert re.fullmatch(r"\d+\.\d{3} Starting to load model owner/model\.\.\. of two lines", lines[0])
    progress = Progress(events.emit, 60, file)
    with progress.phase("load"):
        progress.report()
    assert events.all[0]["phase"] == "weights"


def test_a_full_disk_costs_the_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    handler = MilestoneHandler("/dev/full")
    logger = logging.Logger("vllm.test")
    logger.addHandler(handler)
    logger.error("lost")
    assert capsys.readouterr() == ("", "")


def test_a_download_is_seen_to_grow(
    tmp_path: Path, events: Events, milestones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client downloads from a slow hub; the progress sees the bytes by the cache's folder."""
    size = 4_000_000
    repository, cache = Repository("MODEL_NAME", "owner/model"), tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub(files={"config.json": b"{}", "model.safetensors": bytes(size)}, bytes_per_s=4_000_000) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250_000)  # by default it writes 10 MB at a time
        progress = Progress(events.emit, 0.1, milestones)
        progress.download = hub.download(cache, repository, hub.ask(repository, 5), {})
        assert progress.download.total == size
        progress.start()
        with progress.phase("load"):
            snapshot_download("owner/model", cache_dir=cache, endpoint=served.url)
            progress.report()
        progress.stop()
    said = [event for event in events.all if "downloaded_bytes" in event]
    amounts = [event["downloaded_bytes"] for event in said]
    assert amounts == sorted(amounts)
    assert len(set(amounts)) >= 4
    assert amounts[-1] == size
    assert {event["download_bytes"] for event in said} == {size}
    assert "download" in {event["phase"] for event in said}
    assert said[-1]["phase"] == "load"
