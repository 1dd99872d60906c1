"""Command `resume`: goes on where a run stopped, with the options it was started with."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from llmpod.loadtest.cli.session import run_again
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit
from llmpod.loadtest.flags import make_parser
from llmpod.loadtest.options import PROG, ResumeOptions


def parse(words: Sequence[str]) -> ResumeOptions:
    return make_parser(ResumeOptions, f"{PROG} resume").parse_args(words, ResumeOptions())


def act(chosen: ResumeOptions, environment: Environment) -> Exit:
    return asyncio.run(run_again(Path(chosen.directory), chosen, environment))
