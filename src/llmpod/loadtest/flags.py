"""Command-line flags made from the fields of a dataclass: the kinds of values, and the parser.

`argparse` fills an instance of the class, so that options are typed wherever they go. A flag is the field's name.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, field, fields
from inspect import get_annotations
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.units import parse_duration_s


class Kind(NamedTuple):
    """How a value is read from its text, and what stands for it in --help."""

    read: Callable[[str], Any]
    metavar: str | None


def _duration(text: str) -> float:
    try:
        return parse_duration_s(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' must be above 0")
    return value


def _share(text: str) -> float:
    value = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if value > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is more than everything; write it like 5% or 0.05")
    return value


def _levels(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",") if part]


Duration = Annotated[float, Kind(_duration, "TIME")]  # seconds
Positive = Annotated[int, Kind(_positive, "N")]
Count = Annotated[int, Kind(_count, "N")]
Number = Annotated[float, Kind(_number, None)]
Share = Annotated[float, Kind(_share, "SHARE")]
Levels = Annotated[list[int], Kind(_levels, "N")]


def option(text: str = "", *aliases: str, default: Any = None, group: str | None = None, **how: Any) -> Any:
    """A field that is a flag, or with `positional=True` an argument. `group` begins a group of --help, which holds the
    fields after it, too. `how` goes to argparse: choices, metavar, nargs, action."""
    metadata = {"text": text, "aliases": aliases, "group": group, "how": how}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def repeated(text: str = "", **how: Any) -> Any:
    """A field with one value for each time that its flag is given."""
    return option(text, default=[], action="append", **how)


class Parser(argparse.ArgumentParser):
    """argparse, with errors that say where help is, and as exceptions, so that one place ends the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def make_parser(options: type, prog: str, epilog: str | None = None) -> Parser:
    """The parser of a class of options; `parse_args(words, options())` fills an instance. Its description is the
    class's docstring."""
    parser = Parser(prog=prog, description=options.__doc__, epilog=epilog, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    hints = get_type_hints(options, include_extras=True)
    target: Any = parser
    own = get_annotations(options)
    for one in sorted(fields(options), key=lambda one: one.name not in own):  # what is inherited comes last
        if title := one.metadata["group"]:
            target = parser.add_argument_group(title)
        _add(target, one, hints[one.name])
    return parser


def _add(target: Any, one: "Field[Any]", hint: Any) -> None:
    how = {"help": one.metadata["text"] or None, **one.metadata["how"]}
    hint = next(arm for arm in _arms(hint) if arm is not NoneType)
    inner = get_args(hint)[0] if get_origin(hint) is list else hint
    if inner is bool:
        how["action"] = "store_true"
    elif get_origin(inner) is Annotated:
        kind: Kind = get_args(inner)[1]
        how = {"metavar": kind.metavar, **how, "type": kind.read}
    elif inner is not str:
        how["type"] = inner
    if how.pop("positional", False):
        target.add_argument(one.name, **how)
    else:
        target.add_argument(f"--{one.name.replace('_', '-')}", *one.metadata["aliases"], dest=one.name, **how)


def _arms(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
