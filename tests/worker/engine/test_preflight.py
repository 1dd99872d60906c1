"""Pre-flight: what a start cannot survive is said before vLLM is imported, and what nobody can tell stops nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from llmpod.worker import machine
from llmpod.worker.engine.start import cpu_fork_server, hub, preflight
from llmpod.worker.engine.start.hub import File, Repository
from llmpod.worker.errors import StartError
from llmpod.worker.machine import Disk, Gpu, Gpus
from llmpod.worker.settings import DEMO_MODEL, Settings
from tests.worker.conftest import Events
from tests.worker.loopback_hub import COMMIT, Hub
from tests.worker.test_machine import CARD, OTHER, fake

TOKEN = "a-token-of-the-tests-in-no-line"
NAMED = Settings(model_name="owner/model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub's client that may ask."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.of(DEMO_MODEL) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        yield found


async def checked(events: Events, settings: Settings = NAMED, **environment: str) -> dict[str, Any]:
    """The `preflight` event of a start that goes on."""
    await preflight.run(settings, environment, events.emit)
    return events.named("preflight")[0]


async def refused(events: Events, settings: Settings = NAMED, **environment: str) -> StartError:
    """Why a start does not go on; what it costs is a moment, in one line."""
    began = time.monotonic()
    with pytest.raises(StartError) as caught:
        await preflight.run(settings, environment, events.emit)
    assert time.monotonic() - began < preflight.HUB_S + 5
    assert "\n" not in str(caught.value)
    assert events.named("environment"), "the facts are said first"
    return caught.value


async def test_a_model_that_the_hub_gives_passes_with_what_is_to_be_downloaded(events: Events, served: Hub) -> None:
    event = await checked(events)
    assert event["hub"] == "answered"
    assert event["download_bytes"] == (DEMO_MODEL / "model.safetensors").stat().st_size
    assert event["free_mib"] > 0
    assert served.asked == ["GET /api/models/owner/model"]


@pytest.mark.parametrize(
    ("refusal", "says", "setting"),
    [
        ((401, "GatedRepo", "Access to model owner/model is restricted."), "gated model", "HF_TOKEN"),
        ((403, "GatedRepo", "You are not in the authorized list."), "gated model", "HF_TOKEN"),
        ((401, None, "Invalid credentials in Authorization header"), "refused the token", "HF_TOKEN"),
        ((403, None, "enable access to public gated repositories"), "does not let this worker's token", "HF_TOKEN"),
        ((401, "RepoNotFound", "Invalid username or password."), "has no model owner/model", "MODEL_NAME"),
        ((404, "RepoNotFound", "Repository not found"), "has no model owner/model", "MODEL_NAME"),
        ((404, "RevisionNotFound", "Invalid rev id: v9"), "no such revision", "MODEL_REVISION"),
        ((403, None, "Access to this resource is disabled."), "has disabled owner/model", "MODEL_NAME"),
    ],
)
async def test_what_the_hub_refuses_is_said_at_once(
    events: Events, served: Hub, refusal: Any, says: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    served.refusal = refusal
    error = await refused(events)
    assert says in error.cause
    assert error.setting == setting
    assert served.authorizations == {f"Bearer {TOKEN}"}
    assert TOKEN not in str(events.all)
    assert TOKEN not in str(error)
    assert events.named("environment")[0]["hf_token"] is True
    assert events.named("preflight")[0]["hub"] == "refused"


async def test_a_gated_model_needs_a_token_although_everybody_may_list_it(
    events: Events, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.gated, served.token = True, TOKEN
    error = await refused(events)
    assert "gated" in error.cause
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (await checked(Events()))["hub"] == "answered"


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ((500, None, None), "HfHubHTTPError"),
        ((429, None, None), "HfHubHTTPError"),
        ((404, None, None), "HfHubHTTPError"),
    ],
)
async def test_an_answer_that_says_nothing_of_the_model_stops_nothing(
    events: Events, served: Hub, refusal: Any, reason: str
) -> None:
    served.refusal = refusal
    event = await checked(events)
    assert (event["hub"], event["level"]) == ("unknown", "warning")
    assert reason in event["reason"]


async def test_a_slow_hub_stops_nothing_and_costs_its_deadline_only(
    events: Events, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.delay_s = 3
    monkeypatch.setattr(preflight, "HUB_S", 0.3)
    event = await checked(events)
    assert event["hub"] == "unknown"
    assert event["ms"] < 2500


async def test_no_network_stops_nothing(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert (await checked(events))["hub"] == "unknown"


async def test_a_hub_that_answers_with_something_else_stops_nothing(events: Events, served: Hub) -> None:
    served.repository = "somebody/else"
    served.refusal = (200, None, None)  # {}
    assert (await checked(events))["hub"] in ("answered", "unknown")


async def test_an_operator_who_forbids_connections_is_obeyed(
    events: Events, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (await checked(events))["hub"] == "offline"
    assert served.asked == []


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({"model_name": None}, {}),
        ({"model_name": str(DEMO_MODEL)}, {}),
        ({"model_name": "s3://bucket/model"}, {}),
        ({"model_name": "owner/model"}, {"VLLM_USE_MODELSCOPE": "True"}),
    ],
)
async def test_what_does_not_come_from_the_hub_is_not_asked_for(
    events: Events, served: Hub, settings: dict[str, Any], environment: dict[str, str]
) -> None:
    assert (await checked(events, Settings(**settings), **environment))["hub"] == "none"
    assert served.asked == []


async def test_tokenizer_and_adapters_are_asked_for_by_their_settings(events: Events, served: Hub) -> None:
    for given, setting in (
        ({"tokenizer": "owner/none"}, "TOKENIZER"),
        ({"lora_modules": {"coach": "owner/none"}}, "LORA_MODULES"),
    ):
        error = await refused(events, Settings(model_name="owner/model", **given))
        assert error.setting == setting
        assert "owner/none" in error.cause
        assert setting in error.cure


def put_into_cache(cache: Path, *, shards: int = 1, missing: int = 0, revision: str = "main") -> None:
    snapshot = cache / "models--owner--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "models--owner--model" / "refs").mkdir()
    (cache / "models--owner--model" / "refs" / revision).write_text(COMMIT)
    (cache / "models--owner--model" / "blobs").mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "tokenizer.json").write_text("{}")
    names = [f"model-{index:05}-of-{shards:05}.safetensors" for index in range(shards)]
    if shards > 1:
        entries = ",".join(f'"{index}": "{name}"' for index, name in enumerate(names))
        (snapshot / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{entries}}}}}')
    for name in names[: shards - missing]:
        (snapshot / name).write_text("")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"shards": 3}, True),
        ({"shards": 3, "missing": 1}, False),
        ({"missing": 1}, False),
        ({"revision": "other"}, False),
    ],
)
async def test_a_model_that_is_whole_in_the_cache_is_not_asked_for(
    events: Events, served: Hub, cache: Path, given: dict[str, Any], expected: bool
) -> None:
    put_into_cache(cache, **given)
    event = await checked(events)
    assert event["hub"] == ("cached" if expected else "answered")
    assert bool(served.asked) is not expected


async def test_what_is_in_the_cache_need_not_fit_on_the_disk_again(events: Events, served: Hub, cache: Path) -> None:
    listed = {file["name"]: file for file in served.listing()}
    blobs = cache / "models--owner--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / listed["model.safetensors"]["lfs"]["oid"]).write_bytes(served.files["model.safetensors"])
    assert (await checked(events))["download_bytes"] == 0


async def test_a_disk_that_is_too_small_is_refused_with_the_numbers(events: Events, served: Hub) -> None:
    served.sizes["model.safetensors"] = 2**60
    error = await refused(events)
    assert error.setting == "HF_HOME"
    assert "1073741824.00 GiB more" in error.cause
    assert "free" in error.cause


async def test_the_format_decides_what_is_downloaded_and_an_unknown_one_is_not_guessed(
    events: Events, served: Hub
) -> None:
    served.sizes["model.safetensors"] = 2**60
    assert "download_bytes" not in await checked(events, LOAD_FORMAT="runai_streamer")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], {"model.safetensors"}),
        (["pytorch_model.bin", "config.json"], {"pytorch_model.bin"}),
        (["model.safetensors", "onnx/model.safetensors", "original/consolidated.00.pth"], {"model.safetensors"}),
        (
            [
                *("model.safetensors.index.json", "consolidated.safetensors"),
                *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            ],
            {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
        ),
        (["README.md"], set()),
    ],
)
def test_weights_are_the_files_that_vllm_downloads(files: list[str], expected: set[str]) -> None:
    assert {file.name for file in hub.weights(File(name, 1, None) for name in files)} == expected


async def test_a_cache_that_cannot_be_written_is_refused_where_something_is_to_be_written(
    events: Events, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = await refused(events, DOWNLOAD_DIR="/proc/llmpod")
    assert "/proc/llmpod" in error.cause
    assert "There is no network volume at /runpod-volume." in error.cause
    assert error.setting == "HF_HOME"


def test_a_read_only_volume_with_the_model_on_it_is_no_failure(tmp_path: Path) -> None:
    unwritable = Disk("/runpod-volume", 100, 50, refused="Read-only file system")
    there, gone = tmp_path, tmp_path / "none"
    for blobs, total, fails in (
        (there, 0, False),
        (gone, 0, False),
        (there, None, False),  # the hub did not answer; what is there may be the model
        (gone, None, True),
        (there, 1, True),
    ):
        error = preflight.missing_disk(hub.Download(blobs, total, 0), unwritable, volume=True)
        assert (error is not None) is fails, (blobs, total)


@pytest.mark.parametrize(
    ("gpus", "device", "fails"),
    [
        (Gpus((Gpu("x", 1, 1, "8.0"),)), True, False),
        (Gpus(), True, True),  # the driver answers that there is none
        (Gpus(), False, True),
        (Gpus(unknown="nvidia-smi cannot be run"), False, True),
        (Gpus(unknown="nvidia-smi cannot be run"), True, False),
        (Gpus(unknown="nvidia-smi failed with exit status 9"), True, False),
    ],
)
def test_a_gpu_is_missed_only_where_it_is_certain(
    gpus: Gpus, device: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_accelerator_device", lambda: device)
    assert (preflight.missing_gpu(gpus, cuda_build=True) is not None) is fails
    assert preflight.missing_gpu(gpus, cuda_build=False) is None


async def test_a_cuda_build_without_a_gpu_is_refused_before_the_hub_has_answered(
    events: Events, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.delay_s = 3
    monkeypatch.setattr(cpu_fork_server, "on_cpu", lambda: False)
    monkeypatch.setattr(machine, "versions", lambda: {"cuda": "12.9"})
    monkeypatch.setattr(machine, "has_accelerator_device", lambda: False)
    began = time.monotonic()
    error = await refused(events)
    assert "No GPU" in error.cause
    assert time.monotonic() - began < 2.5


async def test_the_environment_says_what_runs_here(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, f"echo '{CARD}'; echo '{OTHER}'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    await checked(events, Settings(model_name=str(DEMO_MODEL), max_tokens_max=99), LLMPOD_COMMIT="abc")
    [event] = events.named("environment")
    assert {"llmpod", "python", "vllm", "torch", "transformers", "runpod", "cpus", "memory_mib"} <= event.keys()
    assert (event["commit"], event["driver"], event["hf_token"]) == ("abc", "550.127.05", False)
    assert [gpu["memory_mib"] for gpu in event["gpus"]] == [24564, 81559]
    assert event["settings"] == {"MODEL_NAME": str(DEMO_MODEL), "MAX_TOKENS_MAX": 99}
    assert event["cache"]["refused"] is None
    assert event["network_volume"] is False


async def test_a_thread_that_never_returns_holds_up_nothing() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await preflight.within(0.05, time.sleep, 20)
    assert time.monotonic() - began < 5


def test_a_refusal_is_told_from_a_doubt() -> None:
    assert not hub.is_definite(TimeoutError())
    assert not hub.is_definite(OSError("Network is unreachable"))
    assert hub.repositories(Settings(model_name="not a name at all"), {}) == [
        Repository("MODEL_NAME", "not a name at all")
    ]
