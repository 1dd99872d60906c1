"""Payloads: prompts (one, a data set, or made to length) in the request format of the mode."""

import json
import random
from pathlib import Path
from typing import Any, Protocol

from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model.plan import ONE_REQUEST, Mode
from llmpod.loadtest.options import RunOptions

# fmt: off
_WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company",
    "system", "program", "question", "work", "government", "number", "night", "point", "home", "water", "room",
    "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word",
    "business", "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game",
    "line", "end",
]
# fmt: on


class Bodies(Protocol):
    """What a run sends: the body of each job, and the name of its kind."""

    def name(self, index: int) -> str | None: ...

    def body(self, mode: Mode, phase: str, index: int) -> dict[str, Any]: ...


class Payloads:
    """`body(mode, phase, index)` is the same for the same seed, so a run can be repeated and resumed.

    Every prompt starts with a tag of its own: with equal prompts, a prefix cache would answer from the second request
    on, and the test would measure the cache. `--prompt-tag none` measures that on purpose.
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._rows = _read_dataset(options.dataset) if options.dataset else []
        self._template = (
            _read_object(options.payload_template, "--payload-template") if options.payload_template else None
        )
        self._extra = parse_object(options.extra_body, "--extra-body") if options.extra_body else {}
        random.Random(options.seed).shuffle(self._rows)  # noqa: S311 - an order, not a secret
        mixed = any("weight" in row for row in self._rows)
        self._weights = [row.get("weight", 1) for row in self._rows] if mixed else None

    def name(self, index: int) -> str | None:
        """What kind of prompt a request has, where the data set names its kinds."""
        name = self._row(index).get("name")
        return None if name is None else str(name)

    def _row(self, index: int) -> dict[str, Any]:
        if not self._rows:
            return {}
        if self._weights is None:
            return self._rows[index % len(self._rows)]
        draw = random.Random(f"{self._options.seed}:mix:{index}")  # noqa: S311 - a draw of prompts
        return draw.choices(self._rows, self._weights)[0]

    def body(self, mode: Mode, phase: str, index: int) -> dict[str, Any]:
        row = self._row(index)
        if "input" in row:
            given = row["input"]
            if mode == "http":  # the whole body: a load balancer knows no jobs
                return {**given, **self._extra} if isinstance(given, dict) else given
            return {"input": {**given, **self._extra} if isinstance(given, dict) else given}
        prompt = self._tagged(str(row.get("prompt") or self._prompt(index)), phase, index)
        if self._template is not None:
            filled: dict[str, Any] = _fill(self._template, {"prompt": prompt, "index": index})
            return {**filled, **self._extra}
        sampling = {
            "max_tokens": row.get("max_tokens", self._options.max_tokens),
            "temperature": self._options.temperature,
        }
        if mode in ONE_REQUEST:
            messages = row.get("messages") or [{"role": "user", "content": prompt}]
            streaming = (
                {"stream": True, "stream_options": {"include_usage": True}} if not self._options.no_stream else {}
            )
            model = {"model": self._options.model} if self._options.model else {}
            return {"messages": messages, **model, **sampling, **streaming, **self._extra}
        text: dict[str, Any] = {"messages": row["messages"]} if "messages" in row else {"prompt": prompt}
        inner = {**text, "sampling_params": sampling, **({"stream": True} if mode == "stream" else {}), **self._extra}
        return {"input": inner}

    def _prompt(self, index: int) -> str:
        if self._options.input_len is None:
            return self._options.prompt
        draw = random.Random(f"{self._options.seed}:{index}")  # noqa: S311 - text
        return " ".join(draw.choice(_WORDS) for _ in range(self._options.input_len))

    def _tagged(self, prompt: str, phase: str, index: int) -> str:
        label = f"[{phase} #{index}]"
        if self._options.prompt_tag == "front":
            return f"{label} {prompt}"
        return f"{prompt} {label}" if self._options.prompt_tag == "end" else prompt


def _fill(value: Any, names: dict[str, Any]) -> Any:
    """`{{prompt}}` and `{{index}}` replaced in every string of a JSON value."""
    if isinstance(value, str):
        for name, put in names.items():
            value = value.replace("{{" + name + "}}", str(put))
        return value
    if isinstance(value, dict):
        return {key: _fill(item, names) for key, item in value.items()}
    return [_fill(item, names) for item in value] if isinstance(value, list) else value


def parse_object(text: str, flag: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{flag} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{flag} must be a JSON object")
    return value


def read_text(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag}: cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{flag}: {path} is not UTF-8 text") from None


def _read_object(path: str, flag: str) -> dict[str, Any]:
    return parse_object(read_text(path, flag), f"{flag} {path}")


def _read_dataset(path: str) -> list[dict[str, Any]]:
    """JSON lines, each with `prompt`, `messages` or `input`, and perhaps `weight`, `name` and `max_tokens`."""
    rows = []
    for number, line in enumerate(read_text(path, "--dataset").splitlines(), 1):
        if not line.strip():
            continue
        row = parse_object(line, f"--dataset {path} line {number}")
        if not {"prompt", "messages", "input"} & row.keys():
            raise UsageError(f"--dataset {path} line {number} has none of prompt, messages, input")
        weight, tokens = row.get("weight", 1), row.get("max_tokens", 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
            raise UsageError(f"--dataset {path} line {number}: weight is a number above 0")
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise UsageError(f"--dataset {path} line {number}: max_tokens is a whole number from 1")
        rows.append(row)
    if not rows:
        raise UsageError(f"--dataset {path} is empty")
    return rows
