"""Environment variables: loads `Settings`, corrects common template errors, and detects misspelt names.

The only module of the worker that reads the environment. Values that templates and web forms get wrong (`None` as text,
quotes around a value, a stray 0) are corrected and reported; a wrong type, a value out of range or a name that
resembles a setting stops the start with one line that states the cure.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, ValidationError

from llmpod.worker.errors import StartError
from llmpod.worker.other_workers import REFUSED, RETIRED, meant_by
from llmpod.worker.serve_mode import ServeMode, decide
from llmpod.worker.settings import Settings


@dataclass(frozen=True)
class Correction:
    """A value that was changed or ignored."""

    setting: str
    given: str | None  # None: it may be a secret
    used: str | None  # None: as if it were not set
    reason: str


@dataclass(frozen=True)
class Environment:
    """Result of `load`: the settings, the corrections, and the upper-case variables that are not settings."""

    settings: Settings
    corrections: tuple[Correction, ...]
    others: Mapping[str, str]
    mode: ServeMode


NONE_WORDS = frozenset({"none", "null", "undefined"})
"""Values that stand for no value, as web forms and templates send them."""


def names() -> dict[str, str]:
    """Environment variable -> field, older names included."""
    found: dict[str, str] = {}
    for field, info in Settings.model_fields.items():
        found[field.upper()] = field
        if isinstance(info.validation_alias, AliasChoices):
            found.update((str(alias), field) for alias in info.validation_alias.choices)
    return found


def load(environ: MutableMapping[str, str] = os.environ) -> Environment:
    """Load the settings. Values are corrected in `environ` too, because vLLM's processes inherit it.

    Raises:
        StartError: a value has the wrong type or range, or a name looks like one of ours and is not.
    """
    known = names()
    refuse_renamed(environ)
    corrections = tuple(_correct(environ, known))
    others = {name: value for name, value in environ.items() if name.isupper() and name not in known}
    refuse_mistyped(others, known)
    try:
        settings = Settings()
    except ValidationError as error:
        raise _explain(error, known) from None
    except ValueError as error:  # pydantic-settings: a JSON setting that is not JSON
        raise StartError(f"A setting could not be read: {error}.", "Give it as JSON.") from None
    if settings.max_tokens_max and not settings.max_tokens_min <= settings.max_tokens_max:
        raise StartError(
            f"MAX_TOKENS_MIN ({settings.max_tokens_min}) is above MAX_TOKENS_MAX ({settings.max_tokens_max}).",
            "Lower the one or raise the other.",
            setting="MAX_TOKENS_MIN",
        )
    return Environment(settings, corrections, others, decide(settings, environ))


def provide(values: Mapping[str, str]) -> None:
    """Set defaults of variables for imported libraries and their child processes."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
    # They log through our classes (event_log.logging_config), also where this package is not installed but only run.
    source = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])


def put(values: Mapping[str, str]) -> None:
    """Set variables for this process and those it starts."""
    os.environ.update(values)


def environment() -> dict[str, str]:
    """A copy of all variables."""
    return dict(os.environ)


def worker_id() -> str | None:
    """The worker's id on RunPod."""
    return os.environ.get("RUNPOD_POD_ID") or None


def is_secret(name: str) -> bool:
    """Whether a variable's value may be a secret, by the words of its name: HF_TOKEN, and not MAX_TOKENS."""
    return re.search(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", name.upper()) is not None


def secrets() -> frozenset[str]:
    """The values of variables that may be secrets, to be removed from what is logged; not short words, nor numbers."""
    found = {value.strip() for name, value in os.environ.items() if is_secret(name)}
    return frozenset(value for value in found if len(value) >= 8 and not value.replace(".", "").isdigit())


def differing(settings: Settings, longest: int) -> dict[str, object]:
    """The settings that differ from their defaults, by variable; texts are cut to `longest` characters."""
    shown: dict[str, object] = {}
    for field, info in Settings.model_fields.items():
        value = getattr(settings, field)
        if value == info.default:
            continue
        text = value if isinstance(value, str | int | float) else str(value)
        shown[field.upper()] = "…" if is_secret(field) else text[:longest] if isinstance(text, str) else text
    return shown


def adopt(variables: Mapping[str, str]) -> None:
    """Replace this process's variables by those of another."""
    os.environ.clear()
    os.environ.update(variables)


@contextlib.contextmanager
def temporarily(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the block, for processes that are started in it."""
    before = environment()
    try:
        os.environ.update(values)
        yield
    finally:
        adopt(before)


def _correct(environ: MutableMapping[str, str], known: Mapping[str, str]) -> Iterable[Correction]:
    for name in sorted(environ):
        given = environ[name]
        ours = meant_by(name)
        if name in RETIRED or (ours is not None and given.strip()):
            yield ignored(name, given, RETIRED.get(name) or f"{ours} is used instead")
            del environ[name]
            continue
        if name not in known:
            continue
        value = given.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1].strip()
            yield Correction(name, given, value, "the quotes were part of the value")
        if value.lower() in NONE_WORDS:
            yield Correction(name, given, None, "the word stands for no value")
            value = ""
        elif value.lower() in ("0", "auto") and _vllm_can_decide(known[name]):
            yield Correction(name, given, None, "left to vLLM")
            value = ""
        if value:
            environ[name] = value
        else:
            del environ[name]


def _vllm_can_decide(field: str) -> bool:
    """Whether the setting is a whole number without a default, for which 0 is not a valid value."""
    info = Settings.model_fields[field]
    return info.default is None and "int" in str(info.annotation)


def ignored(name: str, given: str, reason: str) -> Correction:
    """The correction for an ignored variable, without its value, which may be a secret."""
    secret = re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)
    return Correction(name, None if secret else given, None, f"ignored: {reason}")


def refuse_renamed(environ: Mapping[str, str]) -> None:
    """Reject variables of other workers that would change what is served and that this worker does not read.

    Raises:
        StartError: names the variable and what to set instead.
    """
    for name in sorted(environ):
        ours, value = meant_by(name), environ[name].strip()
        if not value or value.lower() in NONE_WORDS:
            continue
        if name in REFUSED:
            raise StartError(f"{name} is not a setting of this worker.", REFUSED[name], setting=name)
        if ours is not None and value != environ.get(ours, "").strip():
            raise StartError(f"{name} is not a setting; {ours} is.", f"Rename it to {ours}, or unset it.", setting=name)


def refuse_mistyped(found: Iterable[str], known: Iterable[str], also_known: Iterable[str] = ()) -> None:
    """Reject the first name in `found` that resembles one in `known`.

    Raises:
        StartError: names the variable and the setting it resembles.
    """
    known = list(known)
    accepted = {*known, *also_known, *RETIRED}
    for name in sorted(set(found) - accepted):
        if likely := _resembles(name, known):
            raise StartError(
                f"{name} is not a setting; {likely} is.", f"Rename it to {likely}, or unset it.", setting=name
            )


# Prefixes of variables of other software, which may resemble ours.
_FOREIGN = (
    "RUNPOD_",
    "HF_",
    "HUGGING",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "PYTHON",
    "PYTORCH_",
    "TORCH",
    "PIP_",
    "UV_",
    "OMP_",
)


def _resembles(name: str, known: Sequence[str]) -> str | None:
    """The name in `known` that `name` probably misspells: similar letters, or the same words."""
    if "_" not in name or len(name) < 8 or name.startswith(_FOREIGN):
        return None
    words = sorted(name.split("_"))
    same = [candidate for candidate in known if sorted(candidate.split("_")) == words]
    return next(iter(same or difflib.get_close_matches(name, known, n=1, cutoff=0.86)), None)


def _explain(error: ValidationError, known: Mapping[str, str]) -> StartError:
    faults = []
    setting_name = ""
    for fault in error.errors(include_url=False):
        location = str(fault["loc"][0])
        setting_name = next((name for name, field in known.items() if location in (field, name)), location.upper())
        shown = "…" if "@" in str(fault["input"]) else repr(fault["input"])  # an address may hold a password
        faults.append(f"{setting_name}={shown}: {fault['msg'].removeprefix('Input ')}")
    return StartError(
        f"Invalid setting: {'; '.join(faults)}.",
        "Correct or unset it (docs/configuration.md lists every setting).",
        setting=setting_name,
    )
