"""Compile cache that outlives the worker: what torch.compile and Triton compiled, as one archive on a network volume.

A start compiles for minutes what the start before it compiled. So vLLM's cache lies in a local folder, which is filled
from an archive before vLLM reads it and archived again once the worker is ready. An archive is written under another
name and then renamed: two workers may write at once, and one may be killed while it writes, and a reader still finds a
whole archive or none.

An archive holds code that is run: the folder must be the operator's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmpod.worker import machine
from llmpod.worker.event_log import Emit
from llmpod.worker.settings import Settings

MAX_BYTES = 2 << 30
"""Largest archive: reading a larger one from a network volume would cost more than it saves."""
MAX_FACTORS_BYTES = 1 << 20
LEFT_OVER_S = 3600.0
"""Age from which an unfinished archive is one that nobody finishes."""
VALUE_CHARS = 80
"""Length to which a factor is cut where it is shown."""
VARIABLES = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that say where compiled code is kept, and their folders in the archive."""

_FACTORS = "factors.json"
"""First file of an archive: the factors of its name."""
_SETTINGS = (
    *("model", "model_revision", "dtype", "quantization", "tensor_parallel_size", "enforce_eager", "max_model_len"),
    *("max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill"),
)


def key_of(factors: Mapping[str, Any]) -> str:
    """Name of the archive for what compiled code depends on.

    vLLM and torch check their own keys within it, over every argument and source file. So these factors need not be
    complete: they keep apart what would never be shared (versions, GPUs, models). What differs from worker to worker
    must not be among them.
    """
    return hashlib.sha256(_text_of(factors).encode()).hexdigest()[:32]


def folder_for(settings: Settings, *, on_cpu: bool) -> Path | None:
    """Where archives are kept: COMPILE_CACHE, or RunPod's network volume if there is one. None: nowhere."""
    if on_cpu and settings.enforce_eager is not False:  # nothing is compiled
        return None
    if settings.compile_cache is not None:
        return None if settings.compile_cache.lower() == "off" else Path(settings.compile_cache).expanduser()
    return machine.NETWORK_VOLUME / "llmpod-compile-cache" if machine.network_volume() else None


def factors_of(settings: Settings, gpus: machine.Gpus) -> dict[str, Any]:
    """What compiled code depends on, as far as it is known before vLLM is imported (see `key_of`).

    `settings`: with the folder of a model that is read from one, because vLLM's own key has what it is given.
    """
    found: dict[str, Any] = dict(machine.versions())
    found["gpus"] = [(gpu.name, gpu.compute_capability) for gpu in gpus.found]
    found["driver"] = gpus.driver
    if not gpus.found:
        found["cpu"] = platform.machine(), _instructions()
    found |= {name: getattr(settings, name) for name in _SETTINGS}
    return found | {"lora": bool(settings.lora_modules)}


def difference(factors: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> str | None:
    """In what these factors differ from the nearest of the others; None if there are no others."""
    mine = json.loads(_text_of(factors))
    nearest: list[str] | None = None
    for other in others:
        names = sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
        if nearest is None or len(names) < len(nearest):
            nearest = [f"{name} is {_brief(mine.get(name))} here and {_brief(other.get(name))} there" for name in names]
    return None if nearest is None else ", ".join(nearest)


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}…"


def _text_of(factors: Mapping[str, Any]) -> str:
    return json.dumps(factors, sort_keys=True, default=str)


def _instructions() -> str:
    """The processor's instruction sets."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return ""


class CompileCache:
    """The compile cache of one start: `load`, then the start, then `save`."""

    def __init__(self, folder: Path, emit: Emit) -> None:
        """`folder`: where archives are kept."""
        self._folder = folder
        self._archive = folder
        self._emit = emit
        self._local = Path(tempfile.mkdtemp(prefix="compiled-"))
        self._factors: Mapping[str, Any] = {}
        self._known: frozenset[str] = frozenset()

    @property
    def variables(self) -> dict[str, str]:
        """The variables with which vLLM's processes are to be started."""
        return {name: str(self._local / part) for name, part in VARIABLES.items()}

    def load(self, factors: Mapping[str, Any]) -> None:
        """Fill the local folder from the archive for `factors` (see `key_of`). For a thread: it reads much."""
        self._archive, self._factors = self._folder / f"{key_of(factors)}.tar", factors
        began = time.monotonic()
        result, reason = "hit", None
        try:
            with self._archive.open("rb") as file:
                _check_end(file)
                with tarfile.open(fileobj=file) as archive:
                    archive.extractall(self._local, filter="data")
        except FileNotFoundError:
            differs = difference(factors, self._others())
            result = "miss"
            reason = "No worker has written one yet." if differs is None else f"Of the nearest archive {differs}."
        except (OSError, tarfile.TarError, EOFError) as error:
            result, reason = "damaged", f"{type(error).__name__}: {error}"
            self._empty()
        self._known = self._compiled()
        self._report("load", result, began, reason)

    def save(self) -> None:
        """Archive the local folder if this start compiled anything. For a thread: it reads and writes much."""
        began = time.monotonic()
        if not self._compiled() - self._known:
            self._report("save", "unchanged", began, None)
            return
        size = sum(path.stat().st_size for path in self._files())
        if size > MAX_BYTES:
            self._report("save", "failed", began, f"{size} bytes are more than the {MAX_BYTES} that are kept.")
            return
        unfinished = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_left_over()
            descriptor, unfinished = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".part")
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                (self._local / _FACTORS).write_text(_text_of(self._factors))
                with tarfile.open(fileobj=file, mode="w") as archive:
                    for path in sorted(self._local.iterdir(), key=lambda path: path.name != _FACTORS):
                        archive.add(path, arcname=path.name)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self._archive)  # noqa: PTH105 - of a name
        except OSError as error:
            self._report("save", "failed", began, error.strerror or type(error).__name__)
            if unfinished is not None:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)  # noqa: PTH108 - of a name
        else:
            self._report("save", "written", began, None)

    def _others(self) -> Iterator[dict[str, Any]]:
        """The factors of the archives that there are."""
        for path in self._folder.glob("*.tar"):
            with contextlib.suppress(OSError, tarfile.TarError, EOFError, ValueError), tarfile.open(path) as archive:
                first = archive.next()
                content = archive.extractfile(first) if first is not None and first.name == _FACTORS else None
                if content is not None and isinstance(found := json.loads(content.read(MAX_FACTORS_BYTES)), dict):
                    yield found

    def _files(self) -> list[Path]:
        return [path for path in self._local.rglob("*") if path.is_file()]

    def _compiled(self) -> frozenset[str]:
        """What was compiled, by vLLM's keys (vllm/torch_compile_cache/KIND/KEY) and Triton's (triton/KEY).

        Not every file: a start that finds everything compiled still notes down things of its own.
        """
        parts = (path.relative_to(self._local).parts for path in self._files())
        return frozenset("/".join(part[: 4 if part[0] == "vllm" else 2]) for part in parts if part[1:])

    def _empty(self) -> None:
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()

    def _remove_left_over(self) -> None:
        now = time.time()
        for path in self._folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > LEFT_OVER_S:
                    path.unlink()

    def _report(self, step: str, result: str, began: float, reason: str | None) -> None:
        files = self._files()
        self._emit(
            "compile_cache",
            step=step,
            result=result,
            archive=str(self._archive),
            files=len(files),
            bytes=sum(path.stat().st_size for path in files),
            ms=round((time.monotonic() - began) * 1000, 1),
            reason=reason,
        )


def _check_end(file: BinaryIO) -> None:
    """Raise TarError if the end of an archive is missing, which tarfile does not notice; rewinds the file."""
    if file.seek(0, os.SEEK_END) < tarfile.RECORDSIZE:
        raise tarfile.TarError("the archive is cut off")
    file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
    if any(file.read()):
        raise tarfile.TarError("the archive is cut off")
    file.seek(0)
