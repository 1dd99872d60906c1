"""requests.csv: the same records as requests.jsonl, one line per job, for a spreadsheet."""

import csv
from collections.abc import Sequence
from pathlib import Path

from llmpod.loadtest.errors import DirectoryError
from llmpod.loadtest.records import Job

COLUMNS = ["phase", "role", "index", "mode", "ok", "error_class", "http_status", "job_id", "worker_id", "scheduled_ms", "sent_ms", "sent_at", "accepted_ms", "first_chunk_ms", "last_token_ms", "done_ms", "total_ms", "total_lower_ms", "total_upper_ms", "scheduled_total_ms", "delay_ms", "exec_ms", "overhead_ms", "ttft_ms", "tpot_ms", "prompt_tokens", "output_tokens", "tokens_estimated", "finish_reason", "polls", "attempts", "platform_retries", "workers_at_submit", "states", "warnings", "error"]


def write_csv(path: Path, jobs: Sequence[Job]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for job in jobs:
                writer.writerow([_cell(getattr(job, name)) for name in COLUMNS])
    except OSError as error:
        raise DirectoryError(f"cannot write {path}: {error.strerror or error}") from None


def _cell(value: object) -> object:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return " ".join(f"{item[0]}@{item[1]:.0f}" if isinstance(item, tuple) else str(item) for item in value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return "'" + value  # a spreadsheet would run it as a formula
    return value
