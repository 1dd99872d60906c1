"""Hugging Face's hub: which of the served files come from there, whether it gives them, and how far a download is."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmpod.worker.engine.start import load_format
from llmpod.worker.settings import Settings

_DEFINITE = {
    "GatedRepoError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "DisabledRepoError",
    "HFValidationError",
}


class Repository(NamedTuple):
    """A repository of the hub, and the setting that names it."""

    setting: str
    name: str
    revision: str | None = None


class File(NamedTuple):
    """A file of a repository. `blob`: what the cache calls its content."""

    name: str
    size: int
    blob: str | None


@dataclass(frozen=True)
class Download:
    """What is still to be downloaded into a folder of the cache. `total`: bytes, if the hub said how many."""

    blobs: Path
    total: int | None
    before: int  # bytes that were there

    def done(self) -> int:
        """Bytes downloaded until now."""
        grown = max(0, _size_of(self.blobs) - self.before)
        return grown if self.total is None else min(grown, self.total)

    @property
    def running(self) -> bool:
        """Whether a file is being downloaded: the hub's client gives it its name when it is complete."""
        return any(name.endswith(".incomplete") for name, _ in _files(self.blobs))


def repositories(settings: Settings, environment: Mapping[str, str]) -> list[Repository]:
    """The repositories that a start reads, the model's first; none where models come from elsewhere."""
    if environment.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true"):
        return []
    named = [Repository("MODEL_NAME", settings.model, settings.model_revision)]
    if settings.tokenizer:
        named.append(Repository("TOKENIZER", settings.tokenizer, settings.tokenizer_revision))
    named += [Repository("LORA_MODULES", path) for path in settings.lora_modules.values()]
    return [repository for repository in named if _is_hub_id(repository.name)]


def cache(environment: Mapping[str, str]) -> Path:
    """The folder into which models are downloaded: vLLM's DOWNLOAD_DIR, or the hub client's own."""
    from huggingface_hub import constants

    return Path(environment.get("DOWNLOAD_DIR", "").strip() or constants.HF_HUB_CACHE).expanduser()


def is_offline() -> bool:
    """Whether the operator has told the hub's client to make no connection (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def has_token() -> bool:
    """Whether there is a token, in a variable or in a file."""
    from huggingface_hub import get_token

    return get_token() is not None


def go_offline() -> dict[str, str]:
    """Let no library of this process ask the hub again; returns the variables that say so to its later children."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # read at each request; the variables are read at import only
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def ask(repository: Repository, timeout_s: float) -> list[File]:
    """The files of a repository, once it is certain that they may be downloaded.

    Raises:
        Exception: as the hub's client raises; `is_definite` tells which of them a download would meet, too.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    found = hub.model_info(repository.name, revision=repository.revision, files_metadata=True, timeout=timeout_s)
    if found.gated:
        hub.auth_check(repository.name)  # everybody may list the files of a gated model
    return [File(file.rfilename, file.size or 0, _blob(file)) for file in found.siblings or ()]


def is_definite(error: Exception) -> bool:
    """Whether the hub has refused, and would refuse a download. A timeout, or a mirror's 404, says nothing."""
    if not _DEFINITE.isdisjoint(kind.__name__ for kind in type(error).__mro__):
        return True
    return getattr(getattr(error, "response", None), "status_code", None) in (401, 403)


def weights(files: Iterable[File]) -> list[File]:
    """The files that vLLM downloads as weights: safetensors, those of the index if there is one, else PyTorch's."""
    files = [file for file in files if "/" not in file.name]
    found = [file for file in files if file.name.endswith(".safetensors")]
    if any(file.name == "model.safetensors.index.json" for file in files):
        sharded = [file for file in found if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file.name)]
        return sharded or found
    return found or [file for file in files if file.name.endswith(".bin")]


def download(
    folder: Path, repository: Repository, files: Iterable[File] | None, environment: Mapping[str, str]
) -> Download:
    """What of a repository's weights is to be downloaded. `files`: what the hub listed, if it answered."""
    blobs = folder / folder_name(repository) / "blobs"
    there = {name for name, _ in _files(blobs)}
    known = files is not None and load_format.of(environment) in load_format.SAFETENSORS
    total = sum(file.size for file in weights(files or ()) if file.blob not in there) if known else None
    return Download(blobs, total, _size_of(blobs))


def _is_hub_id(name: str) -> bool:
    return not name.startswith(("/", "./", "../", "~")) and "://" not in name and not os.path.isdir(name)  # noqa: PTH112


def folder_name(repository: Repository) -> str:
    """What the hub's client calls a repository's folder in its cache."""
    return f"models--{repository.name.replace('/', '--')}"


def _blob(file: Any) -> str | None:
    if file.lfs is not None:
        return str(file.lfs.sha256)
    return file.blob_id if file.blob_id is None else str(file.blob_id)


def _files(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of a folder's files; files may come and go while it is read."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found.append((entry.name, entry.stat().st_size))
    return found


def _size_of(folder: Path) -> int:
    return sum(size for _, size in _files(folder))
