"""Complete snapshots of hub repositories on this machine: a start from one sends the hub no request.

For a repository named by its id, vLLM and transformers ask the hub at every start, also if all of it is in the cache
(a dozen requests for a model of one file). In a folder they only read.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import orjson

from llmpod.worker import machine
from llmpod.worker.engine.start import hub
from llmpod.worker.engine.start.hub import Repository
from llmpod.worker.settings import Settings

CACHED_MODELS = machine.NETWORK_VOLUME / "huggingface-cache" / "hub"
"""Where RunPod puts the model that an endpoint's "Model" field names (docs.runpod.io, "Cached models")."""

_WEIGHTS = {"mistral": ("consolidated*.safetensors",), "pt": ("*.pt",), "npcache": ("*.bin",)}  # of each LOAD_FORMAT
_USUAL_WEIGHTS = ("consolidated*.safetensors", "*.safetensors", "*.bin", "*.pt")  # vLLM loads the first that there are
_VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.*", "*.model", "*.tiktoken")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\..+)")


def caches(environment: Mapping[str, str]) -> list[Path]:
    """Folders with the hub client's layout, in which snapshots are looked for."""
    from huggingface_hub import constants

    return list(dict.fromkeys((hub.cache(environment), Path(constants.HF_HUB_CACHE).expanduser(), CACHED_MODELS)))


def find(folders: Sequence[Path], wanted: Iterable[Repository], chosen_format: str = "auto") -> dict[Repository, Path]:
    """Folders of those repositories that are complete, with the weights that LOAD_FORMAT reads.

    Blocks as long as the file system does.
    """
    found = {}
    kinds = _WEIGHTS.get(chosen_format, _USUAL_WEIGHTS)
    for repository in wanted:
        for folder in folders:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # not there, or not as the client writes it
                snapshot = _snapshot(folder, repository)
                if snapshot is not None and _is_complete(snapshot, repository, kinds):
                    found[repository] = snapshot
                    break
    return found


def local(settings: Settings, found: Mapping[Repository, Path]) -> Settings:
    """The settings with the folders of `found` in place of their ids; the served name stays."""
    folders = {(repository.setting, repository.name): str(path) for repository, path in found.items()}
    update: dict[str, object] = {"served_model_name": settings.served_name}
    if model := folders.get(("MODEL_NAME", settings.model)):
        update["model_name"] = model
    if tokenizer := folders.get(("TOKENIZER", settings.tokenizer or "")):
        update["tokenizer"] = tokenizer
    adapters = settings.lora_modules.items()
    update["lora_modules"] = {name: folders.get(("LORA_MODULES", path), path) for name, path in adapters}
    return settings.model_copy(update=update) if folders else settings


def _snapshot(folder: Path, repository: Repository) -> Path | None:
    """The snapshot of the repository's revision. Without any `refs`, as RunPod may leave it: the only one there is."""
    here = _folder(folder, repository)
    revision = repository.revision or "main"
    reference = here / "refs" / revision
    if reference.is_file():
        return here / "snapshots" / reference.read_text().strip()
    if (here / "snapshots" / revision).is_dir():  # a commit
        return here / "snapshots" / revision
    there = _names(here / "snapshots")
    anonymous = repository.revision is None and len(there) == 1 and not _names(here / "refs")
    return here / "snapshots" / there[0] if anonymous else None


def _folder(folder: Path, repository: Repository) -> Path:
    """The repository's folder. The hub does not tell capital letters from small ones, and RunPod writes small ones."""
    name = hub.folder_name(repository)
    if (folder / name).is_dir():
        return folder / name
    return next((path for path in folder.iterdir() if path.name.casefold() == name.casefold()), folder / name)


def _is_complete(snapshot: Path, repository: Repository, kinds: Sequence[str]) -> bool:
    """Whether a start needs no more than what is there, and no download is under way or was broken off."""
    names = {path.name for path in snapshot.iterdir() if path.is_file()}  # a link without its blob is no file
    if any(name.endswith(".incomplete") for name in _names(snapshot.parents[1] / "blobs")):
        return False
    if repository.setting == "LORA_MODULES":
        return "adapter_config.json" in names and _has_weights(snapshot, names, _USUAL_WEIGHTS)
    has_vocabulary = any(fnmatch(name, pattern) for name in names for pattern in _VOCABULARIES)
    if repository.setting == "TOKENIZER":
        return has_vocabulary
    has_config = not names.isdisjoint(("config.json", "params.json"))
    return has_config and has_vocabulary and _has_weights(snapshot, names, kinds)


def _has_weights(snapshot: Path, names: set[str], kinds: Sequence[str]) -> bool:
    for pattern in kinds:
        files = {name for name in names if fnmatch(name, pattern)}
        indices = {name for name in names if fnmatch(name, f"{pattern}.index.json")}
        if files or indices:
            return _missing(snapshot, files, indices) == set()
    return False


def _missing(snapshot: Path, files: set[str], indices: set[str]) -> set[str]:
    """Files that an index names, or that the numbers of the others call for, and that are not there."""
    wanted = {
        file for index in indices for file in orjson.loads((snapshot / index).read_bytes())["weight_map"].values()
    }
    numbered: dict[tuple[str, str, str], int] = defaultdict(int)
    for name in files:
        if match := _SHARD.fullmatch(name):
            numbered[match[1], match[3], match[4]] += 1
    short = {stem for (stem, total, _), count in numbered.items() if count < int(total)}
    return short | {file for file in wanted if not (snapshot / file).is_file()}


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
