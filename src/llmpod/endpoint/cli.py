"""The command line of the endpoint, made from the fields of Options and Faults, and the process around it."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from llmpod.endpoint.balancer.balancer import LoadBalancer
from llmpod.endpoint.endpoint import LocalEndpoint
from llmpod.endpoint.errors import StartError
from llmpod.endpoint.faults import Fault, Faults
from llmpod.endpoint.options import Options

NOT_FLAGS = frozenset({"env", "faults"})
"""Fields without a flag of their own: the environment is inherited, faults have --fault."""

DESCRIPTION = """\
A RunPod endpoint on your own machine: RunPod's API in front, the worker protocol behind, a queue, an autoscaler and
real worker processes in between. Everything is in memory and gone when it stops: a tool for development.

examples:
  %(prog)s
      http://127.0.0.1:8000/v2/local with the worker of this repository, started by the first job
  %(prog)s --command 'python -u src/main.py' --cwd ../worker --workers-min 1
      another worker, always on
  %(prog)s --kind load-balancer --command 'python -u app.py'
      RunPod's other endpoint type: requests go straight to the HTTP servers of the workers
  %(prog)s --fault job-done:503:0.1 --kill-every-s 20
      errors, crashes and slow workers, as they happen in production
"""


def flags(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a model that have a flag, in their order."""
    for name, info in model.model_fields.items():
        if name not in NOT_FLAGS:
            yield name, info


def shown_default(name: str, info: FieldInfo) -> str:
    """A field's default as a person reads it; empty where there is none or where it depends on the machine."""
    if name == "command":
        return "python -u -m llmpod.worker"
    default = info.get_default()
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default in (None, "") or info.default_factory is not None else f"{default}"


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(group: argparse._ArgumentGroup, model: type[BaseModel]) -> None:
    for name, info in flags(model):
        default = shown_default(name, info)
        text = (info.description or "").replace("%", "%%") + (f" (default: {default})" if default else "")
        if isinstance(info.get_default(), bool):
            group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        unit = name.rpartition("_")[2].upper()
        metavar = "{" + ",".join(choices) + "}" if choices else "COMMAND" if name == "command" else unit
        group.add_argument(flag_of(name), default=None, metavar=metavar, help=text)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m llmpod.endpoint",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(made.add_argument_group("the endpoint"), Options)
    faults = made.add_argument_group(
        "faults", "what production does to a worker; all can be changed over /control/faults"
    )
    faults.add_argument(
        "--fault",
        action="append",
        metavar="OPERATION:OUTCOME:PROBABILITY",
        help=Faults.model_fields["faults"].description,
    )
    add_flags(faults, Faults)
    return made


def parse(argv: Sequence[str]) -> Options:
    """Options from a command line. Raises StartError with the first thing that is wrong."""
    arguments = parser().parse_args(argv)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    values: dict[str, Any] = {name: given[name] for name, _ in flags(Options) if name in given}
    faults: dict[str, Any] = {name: given[name] for name, _ in flags(Faults) if name in given}
    try:
        if "command" in values:
            values["command"] = shlex.split(values["command"])
        if "fault" in given:
            faults["faults"] = [Fault.parse(text) for text in given["fault"]]
        return Options(**values, faults=Faults(**faults))
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise StartError(f"--{name}: {first['msg']}" if name else first["msg"]) from None
    except ValueError as error:
        raise StartError(f"--fault or --command: {error}") from None


async def run(options: Options) -> None:
    """Serves until SIGINT or SIGTERM; a second one ends the workers without grace. Raises StartError."""
    endpoint = LoadBalancer(options) if options.kind == "load-balancer" else LocalEndpoint(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await endpoint.start()
    closing: asyncio.Task[None] | None = None
    try:
        endpoint.console.banner(endpoint.url, endpoint.page_url, options)
        await stop.wait()
        stop.clear()
        closing = asyncio.create_task(endpoint.close(graceful=True))
        again = asyncio.create_task(stop.wait())
        await asyncio.wait((closing, again), return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
    finally:
        if closing is None or not closing.done():
            if endpoint.fleet is not None:
                await endpoint.fleet.abort()
            await (closing or endpoint.close())


def serve(argv: Sequence[str]) -> int:
    """`python -m llmpod.endpoint` as a function: the exit code is 0 after a stop by signal, 2 when it cannot start."""
    try:
        asyncio.run(run(parse(argv)))
    except StartError as error:
        sys.stderr.write(f"endpoint: {error}\n")
        return 2
    return 0
