"""Report page (report.html): one file without scripts, fonts or addresses of other places."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmpod.loadtest.errors import DirectoryError
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.report import facts, view
from llmpod.loadtest.report.charts import charts
from llmpod.loadtest.report.report import METHODS, Report
from llmpod.loadtest.units import show_duration

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
"""Every text of the target is escaped: there is no way around it in the templates."""
BANNER = {"good": "pass", "warn": "warn", "bad": "fail", "": "fail"}


def write_html(path: Path, report: Report, jobs: Sequence[Job]) -> None:
    """Raises DirectoryError when the file cannot be written."""
    try:
        path.write_text(page(report, jobs), encoding="utf-8", errors="replace")
    except OSError as error:
        raise DirectoryError(f"cannot write {path}: {error.strerror or error}") from None


def page(report: Report, jobs: Sequence[Job]) -> str:
    by_phase: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_phase[job.phase].append(job)
    return TEMPLATES.get_template("report.html").render(
        title="Load test report",
        subtitle=" · ".join(report.header),
        report=report,
        phases=[(phase, charts(phase, by_phase[phase.phase.name])) for phase in report.phases],
        facts=facts,
        view=view,
        banner=BANNER,
        methods=METHODS,
        duration=show_duration,
    )
