"""Local run of one job (`python handler.py`): the real worker and engine, with the answer printed as it is generated.

The SDK's own local mode does not iterate a generator handler: it prints `<async_generator object …>` and reports
success (runpod 1.12.0, serverless/modules/rp_local.py). This one runs the job and exits with 1 if it failed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TextIO

import psutil

from llmpod.worker.errors import StartError
from llmpod.worker.worker import Worker
from llmpod.worker.worker_start import WorkerStart

PHASES = ("preflight", "import", "fit", "load", "warm_up", "routes")
"""Phases of a start, one after the other; any other is a part of `load`."""


def read_job(test_input: str | None, file: Path = Path("test_input.json")) -> dict[str, Any]:
    """Read the job from `--test_input`'s JSON, else from the file.

    Raises:
        StartError: there is none, or it is not a job.
    """
    source = file.name if test_input is None else "--test_input"
    try:
        job = json.loads(file.read_bytes() if test_input is None else test_input)
    except FileNotFoundError:
        raise StartError(
            f"{source} does not exist.",
            'Make one, or give a job: python handler.py --test_input \'{"input": {"prompt": "Hello"}}\'.',
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{source} cannot be read: {error}.", "Correct the file.") from None
    except (ValueError, RecursionError) as error:
        raise StartError(f"{source} is not JSON: {error}.", "Correct it.") from None
    if not isinstance(job, dict) or "input" not in job:
        raise StartError(
            f"{source} is not a job.", 'A job is an object with an "input": {"input": {"prompt": "Hello"}}.'
        )
    return {"id": "local_test"} | job


async def run_alone(start: WorkerStart, job: dict[str, Any], *, profile_start: bool = False) -> int:
    """Start the engine, run one job, shut the engine down. Returns the exit status.

    `profile_start`: print where the time of the start went, before the job.
    """
    worker = await start.run()
    try:
        if profile_start:
            age_s = time.time() - psutil.Process().create_time()
            _say(sys.stdout, start_table(worker.engine.started.start_ms, age_s))
        ok = await run(worker, job)
        await start.settle()
        return 0 if ok else 1
    finally:
        worker.engine.shutdown()


def start_table(start_ms: Mapping[str, float], age_s: float) -> str:
    """Where the time of a start went: the phases of the `ready` event, and what came before the first of them.

    `age_s`: seconds from the process's start to now, when jobs can be taken.
    """
    own = {phase: ms / 1000 for phase, ms in start_ms.items() if phase in PHASES}
    rows = [("python, settings", age_s - sum(own.values()))]
    for phase, seconds in own.items():
        rows.append((phase, seconds))
        if phase == "load":
            rows += ((f"  {part}", ms / 1000) for part, ms in start_ms.items() if part not in PHASES)
    rows.append(("ready for jobs", age_s))
    return "".join(f"{name:<18}{seconds:8.2f} s\n" for name, seconds in rows)


async def run(worker: Worker, job: dict[str, Any], out: TextIO | None = None) -> bool:
    """Run one job and print its answer as it is generated. Returns whether the job succeeded."""
    out = out or sys.stdout
    ok = True
    streaming = False
    async with aclosing(worker.handle(job)) as replies:
        async for reply in replies:
            if isinstance(reply, str):  # events of an OpenAI route, or its text
                streaming = False
                _say(out, reply)
            elif isinstance(reply, dict) and reply.get("error"):
                ok = False
                _say(out, ("\n" if streaming else "") + f"FAILED {reply['error']}\n")
            elif isinstance(reply, dict) and _is_delta(reply):
                streaming = True
                _say(out, "".join(choice["text"] for choice in reply["choices"]))
            else:
                _say(out, ("\n" if streaming else "") + json.dumps(reply, ensure_ascii=False, indent=2) + "\n")
                streaming = False
    return ok


def _is_delta(reply: dict[str, Any]) -> bool:
    return "choices" in reply and "usage" not in reply and "failure" not in reply


def _say(out: TextIO, text: str) -> None:
    """Write to stdout; a closed reader (`… | head`) is not a failure of the job."""
    try:
        out.write(text)
        out.flush()
    except (OSError, ValueError):
        if out is sys.stdout:
            # Python flushes it once more at exit, and would then complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
