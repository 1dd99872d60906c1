"""Report page (report.html): one file without scripts, fonts or addresses of other places."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmpod.loadtest.model.job_record import Job, grouped
from llmpod.loadtest.model.run_files import writing
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
    with writing(path):
        path.write_text(page(report, jobs), encoding="utf-8", errors="replace")


def page(report: Report, jobs: Sequence[Job]) -> str:
    by_phase = grouped(jobs, lambda job: job.phase)
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
