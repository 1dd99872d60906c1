"""The archive of compiled code: whole or absent, whoever writes it and however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.start import compile_cache
from llmpod.worker.engine.start.compile_cache import CompileCache, key_of
from llmpod.worker.machine import Gpu, Gpus
from llmpod.worker.settings import Settings
from tests.worker.conftest import Events

FACTORS = {"vllm": "0.32.0", "gpu": "H100", "model": "m"}


def start(folder: Path, events: Events, factors: Any = FACTORS) -> tuple[CompileCache, Path]:
    cache = CompileCache(folder, events.emit)
    cache.load(factors)
    return cache, Path(cache.variables["VLLM_CACHE_ROOT"])


def compile_something(root: Path, key: str = "abc", text: str = "code") -> None:
    place = root / "torch_compile_cache" / "torch_aot_compile" / key / "inductor_cache"
    place.mkdir(parents=True, exist_ok=True)
    (place / "kernel.so").write_text(text)


def results(events: Events) -> list[tuple[str, str]]:
    return [(event["step"], event["result"]) for event in events.named("compile_cache")]


def test_the_second_start_finds_what_the_first_compiled(tmp_path: Path, events: Events) -> None:
    first, root = start(tmp_path, events)
    compile_something(root)
    first.save()
    second, again = start(tmp_path, events)
    assert (again / "torch_compile_cache/torch_aot_compile/abc/inductor_cache/kernel.so").read_text() == "code"
    assert again != root
    (again / "torch_compile_cache/torch_aot_compile/abc/inductor_cache/note").write_text("of this start")
    second.save()
    assert results(events) == [("load", "miss"), ("save", "written"), ("load", "hit"), ("save", "unchanged")]
    assert [path.suffix for path in tmp_path.iterdir()] == [".tar"]


def test_other_arguments_add_to_the_archive(tmp_path: Path, events: Events) -> None:
    for key in ("abc", "def"):
        cache, root = start(tmp_path, events)
        compile_something(root, key)
        cache.save()
    _, root = start(tmp_path, events)
    assert {path.name for path in (root / "torch_compile_cache/torch_aot_compile").iterdir()} == {"abc", "def"}


@pytest.mark.parametrize("name", FACTORS)
def test_what_compiled_code_depends_on_has_an_archive_of_its_own(name: str) -> None:
    assert key_of(FACTORS) == key_of(dict(reversed(FACTORS.items())))
    assert key_of(FACTORS) != key_of(FACTORS | {name: "other"})


NO_GPUS = Gpus()
CARD = Gpus((Gpu("NVIDIA H100", 81559, 81004, "9.0"),), driver="550")


def factors(gpus: Gpus = NO_GPUS, **settings: Any) -> dict[str, Any]:
    return compile_cache.factors_of(Settings(**{"model_name": "owner/model"} | settings), gpus)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (factors(dtype="bfloat16"), 'dtype is "bfloat16" here and null there'),
        (factors(max_model_len=4096), "max_model_len is 4096 here and null there"),
        (
            factors(max_num_seqs=8, max_num_batched_tokens=512),
            "max_num_batched_tokens is 512 here and null there, max_",
        ),
        (factors(model_revision="v2"), "model_revision"),
        (factors(lora_modules={"a": "owner/a"}), "lora is true here"),
        (factors(CARD), "gpus is [["),
        (factors() | {"torch": "9.9"}, 'torch is "9.9" here'),
    ],
)
def test_a_start_that_differs_in_what_counts_is_a_miss_that_says_in_what(
    tmp_path: Path, events: Events, other: dict[str, Any], named: str
) -> None:
    for written in (factors(model_name="somebody/else", max_model_len=77, dtype="half", quantization="awq"), factors()):
        cache, root = start(tmp_path, events, written)
        compile_something(root)
        cache.save()
    start(tmp_path, events, other)
    *_, event = events.named("compile_cache")
    assert (event["step"], event["result"]) == ("load", "miss")
    assert named in event["reason"]
    assert "77" not in event["reason"], "the nearest is compared with"


def test_the_first_miss_has_nothing_to_compare_with(tmp_path: Path, events: Events) -> None:
    start(tmp_path, events)
    (tmp_path / "foreign.tar").write_bytes(b"\0" * 10240)
    start(tmp_path, events, factors())
    assert {event["reason"] for event in events.named("compile_cache")} == {"No worker has written one yet."}


IDS = {
    "RUNPOD_POD_ID": "pod",
    "RUNPOD_POD_HOSTNAME": "host",
    "RUNPOD_TCP_PORT_22": "4711",
    "RUNPOD_PUBLIC_IP": "192.0.2.1",
    "RUNPOD_WEBHOOK_GET_JOB": "https://example.org/pod",
    "HOSTNAME": "host",
    "PORT": "8000",
    "PORT_HEALTH": "8001",
    "VLLM_PORT": "8002",
    "VLLM_HOST_IP": "192.0.2.1",
}


def test_what_differs_from_worker_to_worker_is_in_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither in the archive's name nor in vLLM's own key of what is in it, which has vLLM's variables."""
    from vllm import envs

    def keys(number: int) -> tuple[str, dict[str, object]]:
        for name, value in IDS.items():
            monkeypatch.setenv(name, str(int(value) + number) if value.isdigit() else value.replace("1", str(number)))
        monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(tmp_path / str(number) / "logging.json"))
        cache = CompileCache(tmp_path, lambda *_, **__: None)  # in a folder of its own, as each start's
        for name, value in cache.variables.items():
            monkeypatch.setenv(name, value)
        settings = Settings(
            model_name="owner/model", port=8000 + number, snapshot_seconds=number, served_model_name="x"
        )
        return key_of(compile_cache.factors_of(settings, NO_GPUS)), envs.compile_factors()

    assert keys(1) == keys(2)


@pytest.mark.parametrize("length", [0, 1, 600, 5000, 50_000])
def test_a_damaged_archive_is_a_miss_and_is_replaced(tmp_path: Path, events: Events, length: int) -> None:
    cache, root = start(tmp_path, events)
    compile_something(root, text="x" * 50_000)
    cache.save()
    (archive,) = tmp_path.iterdir()
    archive.write_bytes(archive.read_bytes()[:length] if length != 600 else b"\xff" * 600)
    cache, root = start(tmp_path, events)
    assert not list(root.rglob("*.so"))
    compile_something(root)
    cache.save()
    _, root = start(tmp_path, events)
    assert [path.read_text() for path in root.rglob("*.so")] == ["code"]
    assert [step for step in results(events) if step[0] == "load"][1] == ("load", "damaged")


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, events: Events) -> None:
    import tarfile

    archive = tmp_path / f"{key_of(FACTORS)}.tar"
    with tarfile.open(archive, "w") as file:
        file.add(__file__, arcname="../../outside.py")
    _, root = start(tmp_path, events)
    assert results(events) == [("load", "damaged")]
    assert not (root.parents[1] / "outside.py").exists()


def test_a_folder_that_cannot_be_written_costs_the_archive_and_not_the_start(tmp_path: Path, events: Events) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache, root = start(tmp_path / "file", events)
    compile_something(root)
    cache.save()
    assert results(events)[1] == ("save", "failed")
    assert events.named("compile_cache")[1]["reason"]


def test_too_much_is_not_archived(tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 3)
    cache, root = start(tmp_path, events)
    compile_something(root)
    cache.save()
    assert results(events)[1] == ("save", "failed")
    assert not list(tmp_path.iterdir())


def test_workers_that_write_at_once_leave_a_whole_archive(tmp_path: Path, events: Events) -> None:
    caches = []
    for number in range(8):
        cache, root = start(tmp_path, events)
        compile_something(root, text=str(number) * 100_000)
        caches.append(cache)
    threads = [threading.Thread(target=cache.save) for cache in caches]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        _, root = start(tmp_path, events)
        found = [path.read_text() for path in root.rglob("*.so")]
        assert not found or (len(found[0]) == 100_000 and len(set(found[0])) == 1)
    for thread in threads:
        thread.join()
    assert ("load", "damaged") not in results(events)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tar"]


WRITER = """
import sys, tarfile
from pathlib import Path
from llmpod.worker.engine.start.compile_cache import CompileCache
cache = CompileCache(Path(sys.argv[1]), lambda *_, **__: None)
cache.load({})
root = Path(cache.variables["VLLM_CACHE_ROOT"])
(root / "a" / "b" / "c").mkdir(parents=True)
(root / "a" / "b" / "c" / "kernel.so").write_bytes(bytes(1000))
add = tarfile.TarFile.add
def hang(*args, **named):
    add(*args, **named)
    print("writing", flush=True)
    sys.stdin.read()
tarfile.TarFile.add = hang
cache.save()
"""


@pytest.mark.process
def test_a_worker_killed_while_it_writes_leaves_no_archive_and_its_rest_is_removed_later(
    tmp_path: Path, events: Events
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".part"
    cache, root = start(tmp_path, events, {})
    assert results(events) == [("load", "miss")]
    compile_something(root)
    cache.save()
    assert left.exists()  # perhaps another worker is still writing it
    long_ago = time.time() - compile_cache.LEFT_OVER_S - 1
    os.utime(left, (long_ago, long_ago))
    cache, root = start(tmp_path, events, {})
    compile_something(root, "other")
    cache.save()
    assert [path.suffix for path in tmp_path.iterdir()] == [".tar"]
