"""What a start costs, phase by phase, and what the compile cache saves of it.

python bench/start.py [--model …] [--quick]

Starts `handler.py` with compilation (ENFORCE_EAGER=false) and one job: first without an archive of compiled code, then
with the one that this start left; without --quick then also two at once without one, one with what those left, and one
with another MAX_MODEL_LEN, for which that is of no use. Each start is of another RunPod worker (id, host name, address,
port), in a home folder of its own. Exit status 1 if a start that could find compiled code did not. Phases are those of
the `ready` event, "CPU" is the processor time of all processes of the start: what it costs, whatever else runs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PR_SET_CHILD_SUBREAPER = 36
OTHER_LENGTH = {"MAX_MODEL_LEN": "512"}


class Round(NamedTuple):
    """Starts that begin together. `archives`: the folder they share; `wanted`: what each finds there."""

    title: str
    archives: str
    count: int
    wanted: str
    variables: Mapping[str, str] = {}


QUICK = (Round("first", "a", 1, "miss"), Round("second", "a", 1, "hit"))
WHOLE = (
    *QUICK,
    Round("two at once", "b", 2, "miss"),
    Round("after the two", "b", 1, "hit"),
    Round("other length", "b", 1, "miss", OTHER_LENGTH),
)


class Start:
    """One start of the worker, until its job has been answered and all its processes have ended."""

    def __init__(self, folder: Path, number: int, model: str, more: Mapping[str, str]) -> None:
        """`folder`: holds the archives, and gets a home folder."""
        home = folder / f"home-{number}"
        home.mkdir()
        variables = {
            "HOME": str(home),
            "MODEL_NAME": model,
            "ENFORCE_EAGER": "false",
            "COMPILE_CACHE": str(folder / "archives"),
            "RUNPOD_POD_ID": f"pod-{number}",
            "RUNPOD_POD_HOSTNAME": f"host-{number}",
            "RUNPOD_PUBLIC_IP": f"192.0.2.{number}",
            "RUNPOD_TCP_PORT_22": str(1000 + number),
            "HOSTNAME": f"host-{number}",
            **more,
        }
        command = [sys.executable, __file__, "--one-start"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | variables, stdout=subprocess.PIPE, text=True
        )

    def result(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Wait for the end; returns the log's events, and the seconds of the whole and of the processors."""
        output, _ = self._process.communicate()
        lines = output.splitlines()
        if self._process.returncode:
            sys.exit("\n".join(lines[-20:]))
        found = [re.search(r'\{"ts".*\}$', line) for line in lines]  # a line may begin with a piece of the answer
        return [json.loads(match[0]) for match in found if match], json.loads(lines[-1])


def one_start() -> int:
    """Run handler.py, wait for it and for all it leaves behind, and print what that took."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # so that the fork server's processor time is known, too
    began = time.monotonic()
    worker = subprocess.Popen([sys.executable, "handler.py"], cwd=REPOSITORY)
    status = worker.wait()
    whole_s = time.monotonic() - began
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{json.dumps({'whole process': whole_s, 'CPU': used.ru_utime + used.ru_stime})}", flush=True)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llmpod-demo")
    parser.add_argument("--quick", action="store_true", help="the first two starts only")
    parser.add_argument("--one-start", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_start:
        return one_start()
    missed = False
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {chosen.model}, ENFORCE_EAGER=false; seconds")
    header = None
    with tempfile.TemporaryDirectory() as name:
        number = 0
        for one in QUICK if chosen.quick else WHOLE:
            folder = Path(name) / one.archives
            folder.mkdir(exist_ok=True)
            starts = [Start(folder, number + index, chosen.model, one.variables) for index in range(one.count)]
            number += one.count
            for start in starts:
                events, took = start.result()
                loaded, *saved = [event for event in events if event["event"] == "compile_cache"]
                ready = next(event for event in events if event["event"] == "ready")
                phases = {phase: ms / 1000 for phase, ms in ready["start_ms"].items()}
                if header is None:
                    header = list(phases)
                    print(f"| start | archive | afterwards | {' | '.join(header)} | whole process | CPU |")
                    print("|---" * (len(header) + 5) + "|")
                times = " | ".join(f"{phases.get(phase, 0):.1f}" for phase in header)
                after = " ".join(event["result"] for event in saved)
                whole = f"{took['whole process']:.1f} | {took['CPU']:.1f}"
                print(f"| {one.title} | {loaded['result']} | {after} | {times} | {whole} |", flush=True)
                expected = "unchanged" if one.wanted == "hit" else "written"
                missed |= (loaded["result"], after) != (one.wanted, expected)
            reason = loaded.get("reason")
        if reason:
            print(f"The last start's reason: {reason}")
    print(f"load {os.getloadavg()[0]:.1f} afterwards")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
