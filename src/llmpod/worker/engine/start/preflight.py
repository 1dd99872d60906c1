"""Pre-flight: before vLLM is imported, the `environment` event, and what would make the start fail minutes later.

The facts are gathered in threads with deadlines: a hub, a driver or a network volume that does not answer says nothing,
and stops nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar, TypeVarTuple

from llmpod.worker import machine
from llmpod.worker.engine.start import cpu_fork_server, diagnosis, hub, load_format, report, snapshots
from llmpod.worker.errors import StartError
from llmpod.worker.event_log import Emit, describe
from llmpod.worker.settings import Settings

HUB_S = 5.0
"""Time for the hub's answers; it has an answer within a second, or none."""
DISK_S = 5.0
"""Time for a file system to answer."""

Given = TypeVarTuple("Given")
Value = TypeVar("Value")


class Hub(NamedTuple):
    """What the hub said. `state`: answered, refused, unknown, offline, cached, or none where nothing comes from it."""

    state: str
    reason: str | None = None
    download: hub.Download | None = None
    refusal: StartError | None = None


class Findings(NamedTuple):
    """What a start goes on with."""

    gpus: machine.Gpus
    download: hub.Download | None
    listed: bool  # the model is there, or the hub gives it
    snapshots: Mapping[hub.Repository, Path] = MappingProxyType({})  # what is read from a folder of the hub's cache

    @property
    def revision(self) -> str | None:
        """The model's commit, if it is read from a snapshot."""
        models = (path.name for repository, path in self.snapshots.items() if repository.setting == "MODEL_NAME")
        return next(models, None)


async def within(seconds: float, function: Callable[[*Given], Value], *args: *Given) -> Value:
    """Call a function in a thread of its own, which nobody waits for after so many seconds, nor at exit.

    Raises:
        TimeoutError: it has not returned.
    """
    outcome: concurrent.futures.Future[Value] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # from here on nobody can cancel it: the thread goes on

    def call() -> None:
        try:
            outcome.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return await asyncio.wait_for(asyncio.wrap_future(outcome), seconds)


async def _within_or(default: Value, seconds: float, function: Callable[[*Given], Value], *args: *Given) -> Value:
    """As `within`, for facts that a start can do without: `default` where a file system or a driver does not answer."""
    try:
        return await within(seconds, function, *args)
    except OSError:  # a TimeoutError is one
        return default


async def run(settings: Settings, environment: Mapping[str, str], emit: Emit) -> Findings:
    """Report the environment, ask the hub, and refuse a start that cannot succeed.

    Raises:
        StartError: with what is missing and how much of it.
    """
    began = time.monotonic()
    folder = hub.cache(environment)
    wanted = hub.repositories(settings, environment)
    nothing: dict[hub.Repository, Path] = {}
    folders, chosen_format = snapshots.caches(environment), load_format.of(environment)
    there = await _within_or(nothing, DISK_S, snapshots.find, folders, wanted, chosen_format)
    asking = asyncio.create_task(_ask(settings, environment, folder, wanted, there))
    try:
        unknown = machine.Disk(str(folder))
        gpus, disk = await asyncio.gather(gpus_now(), _within_or(unknown, DISK_S, machine.disk, folder))
        weights, free_mib = Path(snapshots.local(settings, there).model), machine.memory()[1]
        advice = await _within_or(None, DISK_S, load_format.advice, environment, weights, free_mib)
        emit("environment", **report.environment(settings, environment, gpus, disk))
        cuda_build = not cpu_fork_server.on_cpu() and machine.versions()["cuda"] is not None
        if (refusal := missing_gpu(gpus, cuda_build=cuda_build)) is not None:
            raise refusal
        answer = await asking
    finally:
        asking.cancel()
    to_come = answer.download
    emit(
        "preflight",
        level="warning" if answer.state == "unknown" else None,
        hub=answer.state,
        reason=answer.reason,
        snapshots={repository.name: str(path) for repository, path in there.items()} or None,
        download_bytes=None if to_come is None else to_come.total,
        free_mib=disk.free_mib,
        advice=advice,
        ms=round((time.monotonic() - began) * 1000, 1),
    )
    if answer.refusal is not None:
        raise answer.refusal
    if to_come is not None and (refusal := missing_disk(to_come, disk, volume=machine.network_volume())):
        raise refusal
    return Findings(gpus, to_come, answer.state in ("none", "cached", "answered"), there)


def missing_gpu(gpus: machine.Gpus, *, cuda_build: bool) -> StartError | None:
    """The refusal where a CUDA build certainly has no GPU: none is listed, or there is no driver and no device."""
    if not cuda_build or gpus.found or (gpus.unknown is not None and machine.has_accelerator_device()):
        return None
    return StartError("No GPU is visible to this worker.", diagnosis.NO_GPU_CURE)


def missing_disk(download: hub.Download, disk: machine.Disk, *, volume: bool) -> StartError | None:
    """The refusal where a download certainly fails: the folder cannot be written, or the weights do not fit.

    Where the hub did not say what is to come, a model of which something is in the cache may be there whole.
    """
    there = "" if volume else f" There is no network volume at {machine.NETWORK_VOLUME}."
    wanted_bytes = download.total
    comes = not download.blobs.is_dir() if wanted_bytes is None else wanted_bytes > 0
    if disk.refused is not None and comes:
        return StartError(
            f"The model cannot be downloaded to {disk.path}: {disk.refused}.{there}",
            "Attach a network volume, or set HF_HOME to a folder that the worker's user may write and that has space.",
            setting="HF_HOME",
        )
    if wanted_bytes is None or disk.free_mib is None or wanted_bytes <= disk.free_mib * machine.MIB:
        return None
    return StartError(
        f"The model needs {_gib(wanted_bytes)} more on disk, and {disk.path} has {_gib(disk.free_mib * machine.MIB)} "
        f"free.{there}",
        "Give the container more disk, or mount a volume with enough space and set HF_HOME to a folder on it.",
        setting="HF_HOME",
    )


async def _ask(
    settings: Settings,
    environment: Mapping[str, str],
    folder: Path,
    wanted: list[hub.Repository],
    there: Mapping[hub.Repository, Path],
) -> Hub:
    """Ask the hub for what is not there."""
    if not wanted:
        return Hub("none")
    missing = [repository for repository in wanted if repository not in there]
    if not missing:
        return Hub("cached")
    model = missing[0] if missing[0].setting == "MODEL_NAME" else None
    unlisted = hub.download(folder, model, None, environment) if model else None
    if hub.is_offline():
        return Hub("offline")
    asked = [within(HUB_S, hub.ask, repository, HUB_S) for repository in missing]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for repository, error in zip(missing, answers, strict=True):
        if isinstance(error, Exception) and hub.is_definite(error):
            named = diagnosis.diagnose(error, settings, repository=repository)
            return Hub("refused", describe(error), refusal=named)
    doubt = next((error for error in answers if isinstance(error, BaseException)), None)
    if doubt is not None:
        late = isinstance(doubt, TimeoutError)
        return Hub("unknown", f"no answer within {HUB_S:g} s" if late else describe(doubt), unlisted)
    if model is None:
        return Hub("answered")
    listed = answers[0]
    assert not isinstance(listed, BaseException)
    return Hub("answered", download=hub.download(folder, model, listed, environment))


async def gpus_now() -> machine.Gpus:
    """The GPUs, with what of their memory is free at this moment."""
    return await _within_or(machine.Gpus(unknown="nvidia-smi did not answer"), machine.GPU_QUERY_S + 1, machine.gpus)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
