"""Files of a run's directory, written line by line while the run goes on.

`requests.jsonl` has one line per finished job; `events.jsonl` has what happened around them: sessions, phases, the ids
of accepted jobs (so that a run that was killed can be cleaned up), aborts. A line is handed to the kernel before
`append` returns: a crash of this process loses nothing, and a crash of the machine loses at most what the kernel had
not yet written.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpod.loadtest.environ import Secret
from llmpod.loadtest.errors import DirectoryError
from llmpod.loadtest.model import job_record
from llmpod.loadtest.model.job_record import Job

FORMAT = 1
# Made once: json.dumps and json.loads look at their options in every call, and there are thousands of lines per second.
_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode
REQUESTS, EVENTS, HEALTH, RUN, PLAN = "requests.jsonl", "events.jsonl", "health.jsonl", "run.json", "plan.json"


class LineFile:
    """Append-only JSON lines, unbuffered. A torn last line (from a crash) is completed with a line end before the first
    append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            torn = path.exists() and path.stat().st_size > 0 and _last_byte(path) != b"\n"
            self._file = path.open("ab", buffering=0)
            if torn:
                self._file.write(b"\n")

    def append(self, value: dict[str, Any]) -> None:
        line = _encode(value).encode() + b"\n"
        with writing(self._path):
            self._file.write(line)

    def close(self) -> None:
        self._file.close()


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


class Journal:
    """The files of one run directory, open for appending."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        make_directory(directory)
        self._requests = LineFile(directory / REQUESTS)
        self._events = LineFile(directory / EVENTS)
        self._health = LineFile(directory / HEALTH)

    def request(self, job: Job) -> None:
        self._requests.append(job_record.to_dict(job))

    def event(self, event: str, t_ms: float, **facts: Any) -> None:
        self._events.append({"event": event, "t_ms": round(t_ms, 3), **facts})

    def health(self, sample: dict[str, Any]) -> None:
        self._health.append(sample)

    def close(self) -> None:
        for file in (self._requests, self._events, self._health):
            file.close()


@dataclass(slots=True)
class Recorded:
    """What a directory holds. `unreadable` counts lines that are no records (the torn end of a crashed run, usually
    one)."""

    plan: dict[str, Any]
    jobs: list[Job]
    events: list[dict[str, Any]]
    health: list[dict[str, Any]]
    unreadable: int = 0
    orphans: list[str] = field(default_factory=list)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A failure to write `path` is a DirectoryError."""
    try:
        yield
    except OSError as error:
        raise DirectoryError(f"cannot write {path}: {error.strerror or error}") from None


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(f"cannot make {directory}: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    """All or nothing: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        part.write_text(json.dumps(value, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
        part.replace(path)


def write_redacted(path: Path, value: Any, key: Secret) -> None:
    """A command line may hold anything, the key included: nothing of it goes to disk."""
    write_json(path, json.loads(key.redact(json.dumps(value))))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DirectoryError(f"{path} is not there: {path.parent} is no results directory of this tool") from None
    except OSError as error:
        raise DirectoryError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise DirectoryError(f"{path} is not JSON") from None


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each line's object, or None for a line that is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    value = _decode(line)
                except (ValueError, RecursionError):
                    yield None
                    continue
                yield value if isinstance(value, dict) else None
    except FileNotFoundError:
        return
    except OSError as error:
        raise DirectoryError(f"cannot read {path}: {error.strerror or error}") from None


def read(directory: Path) -> Recorded:
    """Reads a run back. A job that ran twice (a run that was resumed) counts once: the last line about it holds."""
    if not directory.is_dir():
        raise DirectoryError(f"{directory} is no directory")
    plan = read_json(directory / PLAN)
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        found = plan.get("format") if isinstance(plan, dict) else None
        raise DirectoryError(f"{directory} has format {found!r}; this version reads format {FORMAT}")
    unreadable = 0
    jobs: dict[tuple[str, str, int], Job] = {}
    finished: set[str | None] = set()  # also those that a later line about the same job replaces
    for line in read_lines(directory / REQUESTS):
        try:
            job = job_record.from_dict(line) if line is not None else None
        except (KeyError, TypeError, ValueError, OverflowError):
            job = None
        if job is None:
            unreadable += 1
            continue
        jobs[job.phase, job.role, job.index] = job
        finished.add(job.job_id)
    events = [line for line in read_lines(directory / EVENTS) if line is not None]
    health = [line for line in read_lines(directory / HEALTH) if line is not None and "t_ms" in line]
    cancelled = {str(line.get("job_id")) for line in events if line.get("event") == "cancelled"}
    accepted = [str(line.get("job_id")) for line in events if line.get("event") == "accepted"]
    orphans = [job_id for job_id in accepted if job_id not in finished and job_id not in cancelled]
    return Recorded(plan, list(jobs.values()), events, health, unreadable, orphans)
