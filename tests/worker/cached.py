"""Repositories in a cache of the hub's client, laid out as the client and RunPod lay them out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.worker.loopback_hub import COMMIT


def put(cache: Path, name: str, files: Iterable[Path], *, reference: str | None = "main", commit: str = COMMIT) -> Path:
    """The snapshot of a repository with these files, each a link to its blob. `reference`: None: there is none."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in files:
        (repository / "blobs" / f"of-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/of-{file.name}")
    if reference is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    return snapshot
