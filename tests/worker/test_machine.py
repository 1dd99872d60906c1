"""Facts about the machine: whatever nvidia-smi, the disk or the checkout say, there is a report."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker import machine
from llmpod.worker.machine import Gpu, Gpus

CARD = "NVIDIA GeForce RTX 4090, 24564, 24081, 550.127.05, 8.9"
OTHER = "NVIDIA H100 80GB HBM3, 81559, 81004, 550.127.05, 9.0"


def fake(folder: Path, script: str) -> str:
    """An nvidia-smi that does as the script says; its path."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    return str(command)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (f"echo '{CARD}'", Gpus((Gpu("NVIDIA GeForce RTX 4090", 24564, 24081, "8.9"),), "550.127.05")),
        (
            f"echo '{CARD}'; echo '{OTHER}'",
            Gpus(
                (
                    Gpu("NVIDIA GeForce RTX 4090", 24564, 24081, "8.9"),
                    Gpu("NVIDIA H100 80GB HBM3", 81559, 81004, "9.0"),
                ),
                "550.127.05",
            ),
        ),
        (
            "echo 'NVIDIA A100, [N/A], [Insufficient Permissions], 550.1, [N/A]'",
            Gpus((Gpu("NVIDIA A100", None, None, None),), "550.1"),
        ),
        ("echo 'No devices were found'; exit 6", Gpus()),
        ("true", Gpus()),
    ],
)
def test_the_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path, script: str, expected: Gpus) -> None:
    assert machine.gpus(fake(tmp_path, script)) == expected


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 9", "exit status 9"),
        (f"echo '{CARD}'; exit 15", "exit status 15"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "exit status 18"),
        ("echo garbage", "not a table"),
        (f"echo '{CARD}'; echo 'Warning: infoROM is corrupted'", "not a table"),
        ("echo 'a, b, c, d, e'", "not a table"),
        ("head -c 4096 /dev/urandom", "not a table"),
        ("kill -9 $$", "exit status -9"),
    ],
)
def test_an_answer_that_is_none_is_said_to_be_unknown(tmp_path: Path, script: str, why: str) -> None:
    found = machine.gpus(fake(tmp_path, script))
    assert found.found == ()
    assert why in str(found.unknown)


def test_a_driver_that_does_not_answer_costs_its_deadline_only(tmp_path: Path) -> None:
    began = time.monotonic()
    found = machine.gpus(fake(tmp_path, "exec sleep 30"), timeout_s=0.2)
    assert "0.2 s" in str(found.unknown)
    assert time.monotonic() - began < 5


def test_without_nvidia_smi_there_is_a_reason(tmp_path: Path) -> None:
    assert "cannot be run" in str(machine.gpus(str(tmp_path / "none")).unknown)
    (tmp_path / "nvidia-smi").write_text("not a program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert "cannot be run" in str(machine.gpus(str(tmp_path / "nvidia-smi")).unknown)


@given(st.text())
def test_no_output_of_nvidia_smi_raises(text: str) -> None:
    found = machine.parse_gpus(text)
    assert found.unknown is None or not found.found


def test_a_folder_that_can_be_written_has_its_sizes_and_keeps_no_file(tmp_path: Path) -> None:
    found = machine.disk(tmp_path / "not" / "yet")
    assert (found.path, found.refused) == (str(tmp_path / "not" / "yet"), None)
    assert found.total_mib
    assert found.free_mib is not None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_has_the_reason(tmp_path: Path) -> None:
    assert machine.disk(Path("/proc/llmpod")).refused  # for root, too
    (tmp_path / "file").write_text("")
    assert "not a folder" in str(machine.disk(tmp_path / "file" / "hub").refused)


@pytest.mark.process
def test_a_file_system_that_takes_no_byte_is_refused(tmp_path: Path) -> None:
    """A process that may write files of no length: what it meets is what a full disk or a quota gives."""
    program = f"from llmpod.worker import machine; print(machine.disk(machine.Path({str(tmp_path)!r})).refused)"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=limited, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.strip() == os.strerror(27)  # EFBIG
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_versions_are_found_without_an_import() -> None:
    program = "import sys; from llmpod.worker import machine; v = machine.versions(); m = sys.modules\n"
    program += "print(sorted(v), {'torch', 'vllm', 'transformers', 'runpod'} & set(m), v['vllm'], v['torch'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = ["cuda", "llmpod", "python", "runpod", "torch", "transformers", "vllm"]
    assert done.stdout.startswith(f"{names} set() ")
    assert "None" not in done.stdout


def test_the_commit_is_the_images_or_the_checkouts(tmp_path: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert machine.commit({}) == (head.stdout.strip() or None)
    assert machine.commit({"LLMPOD_COMMIT": "abc123"}) == "abc123"
    assert machine.commit({"LLMPOD_COMMIT": ""}, tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert machine.commit({}, tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\n1111 refs/heads/other\n2222 refs/heads/main\n")
    assert machine.commit({}, tmp_path) == "2222"
    (git / "HEAD").write_text("3333\n")
    assert machine.commit({}, tmp_path) == "3333"
    (git / "HEAD").write_bytes(b"\xff\xfe")
    assert machine.commit({}, tmp_path) is None


def test_memory_and_processors_are_those_of_this_process() -> None:
    total, free = machine.memory()
    assert total
    assert free
    assert free <= total
    assert 0 < machine.processors() <= len(os.sched_getaffinity(0))
    assert 0 < machine.used_mib() < total
