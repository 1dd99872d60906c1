"""Progress of a start: a `loading` event at least every LOADING_REPORT_SECONDS, and how long each phase took.

The event loop is blocked while vLLM is imported and while it loads the model, so a thread reports. What vLLM's
processes are doing is in their log lines (event_log.MilestoneHandler), and how much is downloaded in the hub's cache.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmpod.worker.engine.start.hub import Download
from llmpod.worker.event_log import Emit


class Milestone(NamedTuple):
    """A log line of vLLM, from which it can be told what follows, and what it measured."""

    pattern: str
    phase: str | None = None  # what the engine does from now on
    seconds: str | None = None  # the phase whose length the first group is
    gib: str | None = None  # the kind of memory whose size the first group is


MILESTONES = (
    Milestone(r"Starting to load model", phase="weights"),
    Milestone(r"Time spent downloading weights for .*: ([\d.]+) seconds", seconds="download"),
    Milestone(r"Loading weights took ([\d.]+) seconds", seconds="weights"),
    Milestone(r"Model loading took ([\d.]+) GiB memory", phase="profile", gib="weights"),
    Milestone(r"Starting torch\.compile", phase="compile"),
    Milestone(r"torch\.compile took ([\d.]+) s in total", phase="profile", seconds="compile"),
    Milestone(r"Warming up model for the compilation", phase="compile"),
    Milestone(r"Available KV cache memory: ([\d.]+) GiB", gib="kv_cache"),
    Milestone(r"Profiling CUDA graph memory", phase="capture"),
    Milestone(r"Compile and warming up model for size", phase="compile"),
    Milestone(r"Graph capturing finished in ([\d.]+) secs", phase="profile", seconds="capture"),
)
"""Lines of vLLM 0.32; tests/worker/engine/test_progress.py finds each in its source."""


def _lines(file: Path) -> Iterator[tuple[float, str]]:
    """Time, in monotonic seconds, and text of each of vLLM's log lines of this start."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        stamp, _, message = line.partition(" ")
        if re.fullmatch(r"\d+\.\d+", stamp):
            yield float(stamp), message


class Progress:
    """Phases of one start."""

    def __init__(self, emit: Emit, period_s: float, milestones: Path) -> None:
        """`milestones`: the file of event_log.MilestoneHandler."""
        self._emit = emit
        self._period_s = period_s
        self._milestones = milestones
        self._began = time.monotonic()
        self._phase = ("checks", self._began)
        self._seconds: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._report_regularly, daemon=True)
        self.subject: dict[str, Any] = {}  # fields of every event: the model
        self.download: Download | None = None

    def start(self) -> None:
        """Begin to report."""
        self._began = time.monotonic()
        self._phase = ("checks", self._began)
        self._thread.start()

    def stop(self) -> None:
        """End the reports: none is written after this. May be called at any time."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)  # it may be held up by whoever reads stdout

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done inside the block is this phase; phases of one name add up."""
        before, began = self._phase, time.monotonic()
        self._phase = (name, began)
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began
            self._phase = before

    def report(self) -> None:
        """Write a `loading` event now."""
        now = time.monotonic()
        phase, since = self._phase
        doing = None
        if phase == "load":
            phase, since, doing = self._of_engine(phase, since)
        fields: dict[str, Any] = {}
        download = self.download
        if download is not None and (done := download.done()):
            fields = {"downloaded_bytes": done, "download_bytes": download.total}
            if download.running:
                phase = "download"
        fields |= {"phase": phase, "seconds": round(now - self._began, 1), "phase_seconds": round(now - since, 1)}
        self._emit("loading", **self.subject, **fields, doing=doing)

    def start_ms(self) -> dict[str, float]:
        """Length of each phase in ms: this process's own, and those of `load` that vLLM has measured."""
        phases = self._seconds | self._measured("seconds")
        return {name: round(seconds * 1000, 1) for name, seconds in phases.items()}

    def memory_mib(self) -> dict[str, int]:
        """Memory of one device by what it holds, as vLLM has measured it; empty where it does not (on a CPU)."""
        return {name: round(gib * 1024) for name, gib in self._measured("gib").items()}

    def _measured(self, what: Literal["seconds", "gib"]) -> dict[str, float]:
        """Figures in vLLM's lines; with several GPUs each process may report its own, of which the largest counts."""
        found: dict[str, float] = {}
        for _, text in _lines(self._milestones):
            for milestone in MILESTONES:
                name = getattr(milestone, what)
                if name is not None and (match := re.search(milestone.pattern, text)):
                    found[name] = max(found.get(name, 0.0), float(match[1]))
        return found

    def _of_engine(self, phase: str, since: float) -> tuple[str, float, str | None]:
        """What vLLM's processes are doing, since when, and their last line."""
        last = None
        for stamp, text in _lines(self._milestones):
            last = text
            for milestone in MILESTONES:
                if milestone.phase and milestone.phase != phase and re.search(milestone.pattern, text):
                    phase, since = milestone.phase, stamp
        return phase, since, last and last[:200]

    def _report_regularly(self) -> None:
        while not self._ended.wait(self._period_s):
            self.report()
