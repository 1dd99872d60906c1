from collections.abc import Sequence
from pathlib import Path
from llmpod.loadtest.records import Job
from llmpod.loadtest.report import Report
def write_html(path: Path, report: Report, jobs: Sequence[Job]) -> None:
    path.write_text("")
