"""The `llmpod` command: one subcommand per package, each with options of its own (`llmpod COMMAND --help`).

Only this module knows all the packages. A package is imported when its command is run, so that the load tester needs
neither the worker's dependencies nor the endpoint's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from llmpod import __version__

USAGE = """\
usage: llmpod COMMAND [options]

  llmpod worker     run one job on this machine, or serve jobs where RunPod started it
  llmpod serve      a RunPod endpoint on this machine, with real worker processes behind it
  llmpod loadtest   measure any RunPod endpoint
  llmpod plan       whether a model fits into a GPU's memory, and the settings for it

llmpod COMMAND --help lists a command's options; llmpod --version prints the version.
"""
EXTRAS = {"worker": "worker", "serve": "endpoint", "loadtest": "loadtest", "plan": "plan"}
"""The optional dependencies of the distribution that a command needs."""


def worker_parser() -> argparse.ArgumentParser:
    """The options of the worker, and the RunPod SDK's own for serving jobs on this machine."""
    from llmpod.worker.__main__ import parser

    made = parser()
    made.add_argument("--rp_serve_api", action="store_true", help="serve jobs on this machine (docs/endpoint.md)")
    made.add_argument("--rp_api_host", default="127.0.0.1", metavar="HOST", help="address to serve on: %(default)s")
    made.add_argument("--rp_api_port", default="8000", metavar="PORT", help="port to serve on: %(default)s")
    made.add_argument("--rp_api_concurrency", default="1", metavar="N", help="worker processes: %(default)s")
    return made


def worker(argv: Sequence[str]) -> int:
    """The worker; with --rp_serve_api, a local endpoint with this worker behind it."""
    from llmpod.worker import environ, settings
    from llmpod.worker.__main__ import run

    chosen, _ = worker_parser().parse_known_args(argv)  # the rest is the SDK's
    if not chosen.rp_serve_api:
        return run(chosen.test_input, profile_start=chosen.profile_start)
    workers = ["--workers-min", chosen.rp_api_concurrency, "--workers-max", chosen.rp_api_concurrency]
    environ.provide({"MODEL_NAME": settings.DEMO_NAME})
    return serve(["--host", chosen.rp_api_host, "--port", chosen.rp_api_port, *workers])


def serve(argv: Sequence[str]) -> int:
    """The local endpoint."""
    from llmpod.endpoint.cli import serve as serve_endpoint

    return serve_endpoint(argv)


def loadtest(argv: Sequence[str]) -> int:
    """The load tester."""
    from llmpod.loadtest.cli.main import main

    return main(argv)


def plan(argv: Sequence[str]) -> int:
    """The memory estimate."""
    from llmpod.plan.cli import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "worker": worker,
    "serve": serve,
    "loadtest": loadtest,
    "plan": plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, or 2 where the command is unknown or a dependency is missing."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if name == "--version":
        sys.stdout.write(f"llmpod {__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"llmpod: {name!r} is not a command.\n\n{USAGE}")
        return 2
    try:
        return COMMANDS[name](rest)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] == "llmpod":
            raise
        sys.stderr.write(f"llmpod {name} needs {missing.name}: pip install 'llmpod[{EXTRAS[name]}]'\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
