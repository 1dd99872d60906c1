"""requests.csv: the same records as requests.jsonl, one line per job, for a spreadsheet."""

import csv
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.run_files import writing

COLUMNS = [
    "phase", "role", "index", "mode", "ok", "error_class", "http_status", "job_id", "worker_id",
    "scheduled_ms", "sent_ms", "sent_at", "accepted_ms", "first_chunk_ms", "last_token_ms", "done_ms",
    "total_ms", "total_lower_ms", "total_upper_ms", "scheduled_total_ms", "delay_ms", "exec_ms",
    "overhead_ms", "ttft_ms", "tpot_ms", "prompt_tokens", "output_tokens", "tokens_estimated",
    "finish_reason", "polls", "attempts", "platform_retries", "workers_at_submit", "states", "warnings",
    "error", "outcome", "code", "valid", "intent", "retry_wait_ms", "prompt", "gap_p50_ms", "gap_max_ms",
]  # fmt: skip
_READ = attrgetter(*COLUMNS)
_COMPUTED = tuple(COLUMNS.index(name) for name in ("scheduled_total_ms", "overhead_ms", "ttft_ms", "tpot_ms"))
# How a formula may begin, the full-width forms included; OWASP, "CSV injection".
_FORMULA = frozenset("=+-@＝＋－＠")
_STATES, _WARNINGS = COLUMNS.index("states"), COLUMNS.index("warnings")


def write_csv(path: Path, jobs: Sequence[Job]) -> None:
    """Raises DirectoryError when the file cannot be written."""
    with writing(path), path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(map(_cells, jobs))


def _cells(job: Job) -> list[object]:
    cells = list(_READ(job))
    for at in _COMPUTED:
        if cells[at] is not None:
            cells[at] = round(cells[at], 3)
    cells[_STATES] = " ".join(f"{state}@{at_ms:.0f}" for state, at_ms in job.states)
    cells[_WARNINGS] = " ".join(job.warnings)
    return [guarded(cell) if type(cell) is str else cell for cell in cells]


def guarded(text: str) -> str:
    """Text that a spreadsheet takes for text: what could be a formula, leading blanks or not, gets an apostrophe."""
    return f"'{text}" if text.lstrip()[:1] in _FORMULA and text.strip() else text
