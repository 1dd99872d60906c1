"""What a start costs, phase by phase, and what the compile cache saves of it.

python bench/start.py [--model …]

Starts `handler.py` with compilation (ENFORCE_EAGER=false) and one job: first without an archive of compiled code, then
with the one that this start left, then two at once without one, then with what those left. Each start is of another
RunPod worker (RUNPOD_POD_ID), in a home folder of its own. Exit status 1 if a start that could find compiled code did
not. Phases are those of the `ready` event.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


class Start:
    """One start of the worker, until its job has been answered and its process has ended."""

    def __init__(self, folder: Path, number: int, model: str) -> None:
        """`folder`: holds the archives and the home folders."""
        home = folder / f"home-{number}"
        home.mkdir()
        variables = {
            "HOME": str(home),
            "MODEL_NAME": model,
            "ENFORCE_EAGER": "false",
            "COMPILE_CACHE": str(folder / "archives"),
            "RUNPOD_POD_ID": f"pod-{number}",
        }
        self._log = (folder / f"log-{number}").open("w+b")
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "handler.py"], cwd=REPOSITORY, env=os.environ | variables, stdout=self._log
        )

    def events(self) -> list[dict[str, Any]]:
        """Wait for the end; returns the log's events."""
        status = self._process.wait()
        self.seconds = time.monotonic() - self._began
        self._log.seek(0)
        lines = self._log.read().decode().splitlines()
        if status:
            sys.exit("\n".join(lines[-20:]))
        return [json.loads(line) for line in lines if line.startswith('{"ts"')]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llmpod-demo")
    model = parser.parse_args().model
    missed = False
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {model}, ENFORCE_EAGER=false; seconds")
    header = None
    with tempfile.TemporaryDirectory() as name:
        plan = (("first", "a", 1, "miss"), ("second", "a", 1, "hit"), ("two at once", "b", 2, "miss"))
        number = 0
        for title, place, count, wanted in (*plan, ("after the two", "b", 1, "hit")):
            folder = Path(name) / place
            folder.mkdir(exist_ok=True)
            starts = [Start(folder, number + index, model) for index in range(count)]
            number += count
            for start in starts:
                events = start.events()
                loaded = next(event for event in events if event["event"] == "compile_cache")
                saved = [event["result"] for event in events if event["event"] == "compile_cache"][1:]
                ready = next(event for event in events if event["event"] == "ready")
                phases = {phase: ms / 1000 for phase, ms in ready["start_ms"].items()}
                if header is None:
                    header = list(phases)
                    print(f"| start | archive | afterwards | {' | '.join(header)} | whole process |")
                    print("|---" * (len(header) + 4) + "|")
                times = " | ".join(f"{phases.get(phase, 0):.1f}" for phase in header)
                after = " ".join(saved)
                print(f"| {title} | {loaded['result']} | {after} | {times} | {start.seconds:.1f} |", flush=True)
                missed |= loaded["result"] != wanted or (wanted == "hit" and saved != ["unchanged"])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
