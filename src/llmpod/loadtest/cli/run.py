"""Command `run` (the default): sends the planned load, and reports on it."""

import asyncio
from collections.abc import Sequence

from llmpod.loadtest.cli.session import run_new
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit
from llmpod.loadtest.flags import make_parser
from llmpod.loadtest.options import EPILOG, PROG, RunOptions


def parse(words: Sequence[str]) -> RunOptions:
    return make_parser(RunOptions, PROG, EPILOG).parse_args(words, RunOptions())


def act(chosen: RunOptions, environment: Environment) -> Exit:
    return asyncio.run(run_new(chosen, environment))
