"""LoRA adapters that cannot be served: the start stops with the adapter's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmpod.worker.engine.start.lora import rank_for
from llmpod.worker.errors import StartError
from tests.worker.adapters import make_adapter
from tests.worker.processes import REPOSITORY, Json

pytestmark = pytest.mark.engine


def broken(file: str, content: bytes | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return spoil


def cut_in_half(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (broken("adapter_config.json", None), "no adapter_config.json"),
        (broken("adapter_config.json", b"{"), "no adapter_config.json with a rank"),
        (broken("adapter_config.json", b"[1]"), "no adapter_config.json with a rank"),
        (broken("adapter_config.json", b'{"r": 0}'), "the rank 0"),
        (broken("adapter_config.json", b'{"r": 4, "rank_pattern": {"q_proj": 4096}}'), "the rank 4096"),
        (broken("adapter_model.safetensors", None), "no adapter_model.safetensors"),
        (broken("adapter_model.safetensors", b""), "cannot be read"),
        (broken("adapter_model.safetensors", b"\xff" * 64), "cannot be read"),
        (cut_in_half, "cannot be read"),
    ],
)
def test_a_broken_adapter_is_named_before_any_model_is_loaded(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    good, bad = make_adapter(tmp_path / "good"), make_adapter(tmp_path / "bad")
    spoil(bad)
    with pytest.raises(StartError, match=says) as caught:
        rank_for({"Good": str(good), "Coach": str(bad)}, ("demo",))
    assert "'Coach'" in caught.value.cause
    assert caught.value.setting == "LORA_MODULES"
    assert "\n" not in str(caught.value)


def test_the_rank_is_the_smallest_that_holds_every_adapter(tmp_path: Path) -> None:
    small, large = make_adapter(tmp_path / "small", rank=2), make_adapter(tmp_path / "large", rank=20)
    assert rank_for({"a": str(small)}, ()) == 8
    assert rank_for({"a": str(small), "b": str(large)}, ()) == 32
    config = large / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rank_pattern": {"q_proj": 60}}))
    assert rank_for({"a": str(small), "b": str(large)}, ()) == 64
    assert rank_for({"c": "someone/adapter-on-the-hub"}, ()) is None


def start(adapters: dict[str, Path]) -> tuple[int, list[Json]]:
    """The exit status and the log of a worker with these adapters, which must not come up."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "handler.py")],
        cwd=REPOSITORY,
        env=os.environ | {"LORA_MODULES": json.dumps({name: str(path) for name, path in adapters.items()})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_bad_adapter_stops_the_process_in_one_line_before_the_model_is_loaded(tmp_path: Path) -> None:
    status, (fatal,) = start({"Coach": tmp_path / "nowhere"})
    assert (status, fatal["event"], fatal["setting"]) == (1, "fatal", "LORA_MODULES")
    assert "'Coach'" in fatal["cause"]


@pytest.mark.slow
def test_an_adapter_that_only_the_engine_refuses_stops_the_process_with_its_name(tmp_path: Path) -> None:
    good, other = make_adapter(tmp_path / "good"), make_adapter(tmp_path / "other", use_dora=True)
    status, log = start({"Good": good, "Stranger": other})
    (fatal,) = [event for event in log if event["event"] == "fatal"]
    assert (status, fatal["setting"]) == (1, "LORA_MODULES")
    assert "'Stranger'" in fatal["cause"]
    assert not [event for event in log if event["event"] == "ready"]
