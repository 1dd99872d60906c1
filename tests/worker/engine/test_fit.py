"""The estimate of a model's memory before it is loaded: said, and never in the way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.start import fit
from llmpod.worker.engine.start.preflight import Findings
from llmpod.worker.machine import Gpu, Gpus
from llmpod.worker.settings import DEMO_MODEL, Settings
from tests.worker.conftest import Events

DEMO = Settings(model_name=str(DEMO_MODEL))


def gpus(*memory_mib: int | None) -> Gpus:
    return Gpus(tuple(Gpu("Card", size, size, "8.9") for size in memory_mib))


async def told(events: Events, settings: Settings, *memory_mib: int | None) -> dict[str, Any]:
    await fit.report(settings, Findings(gpus(*memory_mib), None, listed=True), events.emit)
    [event] = events.named("fit")
    return event


@pytest.mark.parametrize(
    ("memory_mib", "fits"), [(24564, True), (1100, False), (None, None)], ids=["24 GB", "1 GB", "unknown"]
)
async def test_a_model_that_does_not_fit_is_a_warning(
    events: Events, memory_mib: int | None, fits: bool | None
) -> None:
    event = await told(events, DEMO, memory_mib)
    assert event.get("fits") is fits
    assert event.get("level") == ("warning" if fits is False else None)
    if memory_mib is None:
        assert event["unknown"]
        return
    weights = (DEMO_MODEL / "model.safetensors").stat().st_size
    assert event["weights_mib"] == pytest.approx(weights / 2**20, abs=1)
    assert event["need_mib"] > 1024
    assert event["usable_mib"] == int(0.9 * memory_mib)


async def test_several_gpus_share_the_model_as_vllm_will(events: Events) -> None:
    event = await told(events, DEMO, 24564, 81559)
    assert event["gpus"] == 2
    assert event["usable_mib"] == int(0.9 * 24564), "the smallest counts"
    assert (await told(Events(), Settings(model_name=str(DEMO_MODEL), tensor_parallel_size=1), 99, 99))["gpus"] == 1


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "unheard-of"}', None])
async def test_a_model_that_nobody_can_estimate_is_said_to_be_one(
    events: Events, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    event = await told(events, Settings(model_name=str(tmp_path)), 24564)
    assert "fits" not in event
    assert event["unknown"]


async def test_what_takes_too_long_is_given_up(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "DEADLINE_S", 0.05)
    monkeypatch.setattr(fit, "estimate", lambda *_: time.sleep(5))
    assert (await told(events, DEMO, 24564))["unknown"] == "TimeoutError"


@pytest.mark.parametrize("found", [Findings(Gpus(), None, listed=True), Findings(gpus(24564), None, listed=False)])
async def test_without_gpus_or_a_model_there_is_nothing_to_say(events: Events, found: Findings) -> None:
    assert await fit.report(DEMO, found, events.emit) is None
    assert events.all == []
