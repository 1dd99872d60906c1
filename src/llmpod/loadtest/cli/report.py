"""Command `report`: the report of a recorded run, again or with other objectives."""

import gc
from pathlib import Path

from llmpod.loadtest.cli.publish import publish
from llmpod.loadtest.cli.viewing import make_view
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.options import ReportOptions
from llmpod.loadtest.report.report import build


def act(chosen: ReportOptions, environment: Environment) -> Exit:
    if chosen.directory is None:
        raise UsageError("report needs a DIR")
    directory = Path(chosen.directory)
    gc.disable()  # a hundred thousand records are made, and none of them becomes garbage before the end
    try:
        recorded = run_files.read(directory)
        built = build(recorded, make_view(chosen, recorded.plan))
        return publish(built, recorded, Path(chosen.out) if chosen.out else directory, chosen, environment)
    finally:
        gc.enable()
