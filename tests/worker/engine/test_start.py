"""Starts that fail in the real vLLM, and what the operator reads; and one with a parser that changes generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.start.engine_start import EngineStart
from llmpod.worker.errors import StartError
from llmpod.worker.settings import DEMO_MODEL, Settings
from tests.worker.conftest import Events

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("settings", "environment", "setting"),
    [
        ({"model_name": "/no/such/folder"}, {}, "MODEL_NAME"),
        ({"model_name": "not a name at all"}, {}, "MODEL_NAME"),
        ({"max_model_len": 999_999}, {}, "MAX_MODEL_LEN"),
        ({"quantization": "awqq"}, {}, "QUANTIZATION"),
        ({"quantization": "bitsandbytes"}, {}, "QUANTIZATION"),
        ({"dtype": "float3"}, {}, "DTYPE"),
        ({}, {"ENABLE_PREFIX_CACHE": "1"}, "ENABLE_PREFIX_CACHE"),
        ({}, {"BLOCK_SIZE": "many"}, "BLOCK_SIZE"),
        ({"custom_chat_template": "/no/such/template.jinja"}, {}, "CUSTOM_CHAT_TEMPLATE"),
        ({"default_sampling_params": {"temprature": 1}}, {}, "DEFAULT_SAMPLING_PARAMS"),
        ({"default_sampling_params": {"temperature": -1}}, {}, "DEFAULT_SAMPLING_PARAMS"),
        ({"default_sampling_params": {"min_tokens": 200}}, {}, "DEFAULT_SAMPLING_PARAMS"),
    ],
)
async def test_a_start_that_fails_names_the_setting_to_change(
    events: Events, settings: dict[str, Any], environment: dict[str, str], setting: str
) -> None:
    with pytest.raises(StartError) as caught:
        await EngineStart(Settings(**settings), environment, events.emit).run()
    assert caught.value.setting == setting, str(caught.value)
    assert caught.value.cure
    assert "\n" not in str(caught.value)
    assert not events.named("ready")


async def test_a_folder_without_a_model_is_told_apart_from_a_broken_one(tmp_path: Path, events: Events) -> None:
    with pytest.raises(StartError, match=r"was not found"):
        await EngineStart(Settings(model_name=str(tmp_path)), {}, events.emit).run()


async def test_a_model_that_fails_in_the_engines_process_is_explained_by_what_that_process_said(
    tmp_path: Path, events: Events
) -> None:
    """The weights are only read in a child process, whose log is where the cause stands."""
    for file in DEMO_MODEL.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(StartError, match="damaged or incomplete"):
        await EngineStart(Settings(model_name=str(tmp_path)), {}, events.emit).run()


async def test_a_choice_binds_a_model_that_reasons_first(events: Events) -> None:
    """vLLM leaves the reasoning of such a model free, and a judge that begins to think has no time to answer."""
    engine = await EngineStart(Settings(), {"REASONING_PARSER": "qwen3"}, events.emit).run()
    try:
        turns = (("system", "Reply zebra or yak."), ("user", "Which?"))
        assert await engine.choose(turns, ("zebra", "yak"), "judge") in ("zebra", "yak")
    finally:
        engine.shutdown()
