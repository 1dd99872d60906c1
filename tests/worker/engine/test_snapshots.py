"""Snapshots in the hub's caches: those that are complete are read from their folder, and any other is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmpod.worker.engine.start import snapshots
from llmpod.worker.engine.start.hub import Repository
from llmpod.worker.settings import DEMO_MODEL, Settings
from tests.worker.cached import put
from tests.worker.loopback_hub import COMMIT

MODEL = Repository("MODEL_NAME", "Owner/Model")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = {"weight_map": dict(enumerate(SHARDS))}
FILES = {
    "model.safetensors.index.json": json.dumps(INDEX),
    "consolidated.safetensors.index.json": json.dumps({"weight_map": {"a": "consolidated-00001-of-00001.safetensors"}}),
    "pytorch_model.bin.index.json": json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}),
    "broken.safetensors.index.json": "{",
}


def written(folder: Path, names: str) -> list[Path]:
    """Files of these names, separated by blanks."""
    folder.mkdir(exist_ok=True)
    for name in names.split():
        (folder / name).write_text(FILES.get(name, "{}"))
    return [folder / name for name in names.split()]


@pytest.mark.parametrize(
    ("names", "complete"),
    [
        ("config.json tokenizer.json model.safetensors", True),
        ("config.json tokenizer.json tokenizer_config.json generation_config.json model.safetensors", True),
        (f"config.json vocab.json merges.txt model.safetensors.index.json {' '.join(SHARDS)}", True),
        ("params.json tekken.json consolidated.safetensors", True),
        ("config.json tokenizer.model pytorch_model.bin", True),
        ("config.json tokenizer.model pytorch_model.bin.index.json pytorch_model-00001-of-00001.bin", True),
        # vLLM takes the consolidated files if there are any, so the others need not be there
        ("config.json tokenizer.json consolidated.safetensors model.safetensors.index.json", True),
        ("tokenizer.json model.safetensors", False),
        ("config.json model.safetensors", False),
        ("config.json tokenizer_config.json model.safetensors", False),
        ("config.json tokenizer.json", False),
        (f"config.json tokenizer.json model.safetensors.index.json {SHARDS[0]}", False),
        (f"config.json tokenizer.json {SHARDS[0]}", False),
        ("config.json tokenizer.json model.safetensors.index.json pytorch_model.bin", False),
        ("config.json tokenizer.json pytorch_model.bin.index.json", False),
        ("config.json tokenizer.json consolidated.safetensors.index.json model.safetensors", False),
        ("config.json tokenizer.json model.safetensors broken.safetensors.index.json", False),
    ],
)
def test_a_snapshot_is_complete_with_config_vocabulary_and_all_weights(
    tmp_path: Path, names: str, complete: bool
) -> None:
    snapshot = put(tmp_path / "hub", MODEL.name, written(tmp_path / "files", names))
    assert snapshots.find([tmp_path / "hub"], [MODEL]) == ({MODEL: snapshot} if complete else {})


@pytest.mark.parametrize(
    ("chosen", "names", "complete"),
    [
        ("mistral", "params.json tekken.json consolidated.safetensors", True),
        ("mistral", "config.json tokenizer.json model.safetensors", False),
        ("pt", "config.json tokenizer.json model.safetensors", False),
        ("npcache", "config.json tokenizer.json pytorch_model.bin", True),
        ("runai_streamer", "config.json tokenizer.json model.safetensors", True),
    ],
)
def test_complete_are_the_weights_that_the_format_reads(
    tmp_path: Path, chosen: str, names: str, complete: bool
) -> None:
    put(tmp_path / "hub", MODEL.name, written(tmp_path / "files", names))
    assert (MODEL in snapshots.find([tmp_path / "hub"], [MODEL], chosen)) is complete


def test_a_download_that_was_broken_off_or_lost_a_blob_is_not_complete(tmp_path: Path) -> None:
    snapshot = put(tmp_path, MODEL.name, written(tmp_path / "files", "config.json tokenizer.json model.safetensors"))
    assert snapshots.find([tmp_path], [MODEL]) == {MODEL: snapshot}
    partial = snapshot.parents[1] / "blobs" / "abc.incomplete"
    partial.write_text("")
    assert snapshots.find([tmp_path], [MODEL]) == {}
    partial.unlink()
    (snapshot / "model.safetensors").resolve().unlink()
    assert snapshots.find([tmp_path], [MODEL]) == {}


@pytest.mark.parametrize(
    ("name", "references", "revision", "found"),
    [
        ("Owner/Model", {"main": "a"}, None, "a"),
        ("Owner/Model", {"main": "b", "v1": "a"}, None, "b"),
        ("Owner/Model", {"v1": "a"}, "v1", "a"),
        ("Owner/Model", {"main": "a"}, "a", "a"),
        ("Owner/Model", {"main": "a"}, "v1", None),
        ("Owner/Model", {"v1": "a", "v2": "b"}, None, None),
        ("Owner/Model", {None: "a"}, None, "a"),  # as RunPod may leave it
        ("Owner/Model", {None: "a"}, "v1", None),
        ("Owner/Model", {"v1": "a"}, None, None),
        ("owner/model", {"main": "a"}, None, "a"),  # as RunPod writes it
        ("Owner/Other", {"main": "a"}, None, None),
    ],
)
def test_the_snapshot_is_that_of_the_revision(
    tmp_path: Path, name: str, references: dict[str | None, str], revision: str | None, found: str | None
) -> None:
    files = written(tmp_path / "files", "config.json tokenizer.json model.safetensors")
    paths = {}
    for reference, commit in references.items():
        paths[commit] = put(tmp_path / "hub", name, files, reference=reference, commit=commit)
    wanted = MODEL._replace(revision=revision)
    assert snapshots.find([tmp_path / "hub"], [wanted]) == ({} if found is None else {wanted: paths[found]})


def test_the_first_cache_with_a_complete_snapshot_counts(tmp_path: Path) -> None:
    own, runpods = tmp_path / "own", tmp_path / "runpods"
    files = written(tmp_path / "files", "config.json tokenizer.json model.safetensors")
    put(own, MODEL.name, files[:2])
    expected = put(runpods, MODEL.name, files)
    assert snapshots.find([tmp_path / "none", own, runpods], [MODEL]) == {MODEL: expected}


def test_a_tokenizer_and_an_adapter_need_no_weights_of_a_model(tmp_path: Path) -> None:
    tokenizer, adapter = Repository("TOKENIZER", "o/t"), Repository("LORA_MODULES", "o/a")
    there = {
        tokenizer: put(tmp_path, "o/t", written(tmp_path / "t", "tokenizer.json")),
        adapter: put(tmp_path, "o/a", written(tmp_path / "a", "adapter_config.json adapter_model.safetensors")),
    }
    assert snapshots.find([tmp_path], [MODEL, tokenizer, adapter]) == there
    (there[adapter] / "adapter_model.safetensors").unlink()
    assert snapshots.find([tmp_path], [tokenizer, adapter]) == {tokenizer: there[tokenizer]}


def test_runpods_cached_models_are_looked_at_behind_the_clients_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/data/hub")
    runpods = Path("/runpod-volume/huggingface-cache/hub")
    assert snapshots.caches({}) == [Path("/data/hub"), runpods]
    assert snapshots.caches({"DOWNLOAD_DIR": "/weights"}) == [Path("/weights"), Path("/data/hub"), runpods]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(runpods))  # as in the image
    assert snapshots.caches({}) == [runpods]


def test_folders_stand_in_for_ids_and_names_stay(tmp_path: Path) -> None:
    given = Settings(
        model_name="o/m", tokenizer="o/t", lora_modules={"a": "o/a", "b": "/adapters/b"}, model_revision="v1"
    )
    model = Repository("MODEL_NAME", "o/m", "v1")
    found = {model: tmp_path / COMMIT, Repository("LORA_MODULES", "o/a"): tmp_path / "a"}
    local = snapshots.local(given, found)
    assert (local.model, local.served_name, local.tokenizer) == (str(tmp_path / COMMIT), "o/m", "o/t")
    assert local.lora_modules == {"a": str(tmp_path / "a"), "b": "/adapters/b"}
    assert snapshots.local(given, {}) is given
    demo = snapshots.local(Settings(lora_modules={"a": "o/a"}), {Repository("LORA_MODULES", "o/a"): tmp_path})
    assert (demo.model, demo.is_demo) == (str(DEMO_MODEL), True)
