"""Size and depth limits of a job's input, checked before anything else reads it.

The time to check a job grows with the number of values in it, not with its bytes: a megabyte of `0,` is half a million
invalid messages. So values are counted, in slices between which the event loop runs other tasks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from llmpod.protocol import RUNSYNC_LIMIT_BYTES
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.inputs import GUARD
from llmpod.worker.jobs.json_walk import path_of
from llmpod.worker.jobs.limits import CONSTRAINTS

MAX_DEPTH = 32
"""Deepest nesting of lists and objects in a job. A JSON schema for structured output needs the most."""
MAX_KEY_CHARS = 1000
MAX_CHARS = RUNSYNC_LIMIT_BYTES
"""Characters of all texts and keys: RunPod carries no larger request."""
MEDIA_KEYS = frozenset(
    {
        "image_url",
        "audio_url",
        "video_url",
        "input_audio",
        "input_video",
        "image",
        "images",
        "audio",
        "video",
        "source",
        "file",
        "file_url",
        "file_data",
        "image_embeds",
        "audio_embeds",
    }
)
"""Keys of a content part that hold a file, as an address or as data."""

MAX_TEXT_CHARS = 5_000_000
"""Characters of all texts that are not files: vLLM quotes a value of the wrong type several times in the event loop."""
SHORT_CHARS = 100
"""Texts up to so long are not counted for that: their number is limited."""
OBJECT_IN_LIST = 10
"""Values that an object in a list counts for: a message or a tool is validated against every form it may have."""
SLICE = 1000
"""Values that are checked before the event loop runs other tasks: about a millisecond."""
LARGE_VALUES = 2000
LARGE_CHARS = 2_000
"""A larger text is read in a thread: a profile's policy takes up to 5 ms for a thousand characters."""

_HOLD_SCHEMAS = frozenset({"tools", "functions", *CONSTRAINTS})
"""Fields with JSON schemas in them, whose bounds may be any number: C# writes 1.7976931348623157E+308."""

Params = ParamSpec("Params")
Result = TypeVar("Result")


@dataclass
class Size:
    """Size of a job's input in values."""

    values: int = 0  # texts, numbers, lists and objects; OBJECT_IN_LIST for an object in a list
    chars: int = 0  # of all texts and keys

    @property
    def large(self) -> bool:
        """Whether processing the input takes more than a few milliseconds."""
        return self.values > LARGE_VALUES or self.chars > LARGE_CHARS

    async def aside(self, work: Callable[Params, Result], *args: Params.args, **named: Params.kwargs) -> Result:
        """Return the result of `work`, run in a thread if the job is large and in the event loop otherwise."""
        if self.large:
            return await asyncio.to_thread(work, *args, **named)
        return work(*args, **named)


async def check(job_input: object, max_values: int) -> Size:
    """Check an input against the bounds and return its size.

    Raises:
        JobError: more than `max_values`, endless nesting or keys, or what no field can hold: infinities, numbers
            beyond 64 bits, text that is not Unicode.
    """
    size = Size()
    for _ in walk(job_input, max_values, size):
        await asyncio.sleep(0)
    return size


def walk(job_input: object, max_values: int, size: Size) -> Iterator[None]:
    """Add the values of an input to `size`, yielding after every SLICE of values. Checks as `check` does.

    Holds an iterator and a key per level and nothing per value: a path is put together for an error only.
    """
    keys: list[object] = []
    levels: list[Iterator[tuple[object, object]]] = [iter(((None, job_input),))]
    next_stop = SLICE
    text_chars = 0
    while levels:
        step = next(levels[-1], None)
        if step is None:
            levels.pop()
            continue
        key, value = step
        del keys[len(levels) - 1 :]
        keys.append(key)
        size.values += OBJECT_IN_LIST if isinstance(value, dict) and isinstance(key, int) else 1
        if size.values > max_values:
            while isinstance(keys[-1], int):  # not the element that is one too many, but the list
                keys.pop()
            raise _refused(keys, f"input has more than {max_values} values; this worker accepts no more.")
        if size.values >= next_stop:
            next_stop = size.values + SLICE
            yield
        if isinstance(key, str):
            size.chars += len(key)
            if len(key) > MAX_KEY_CHARS:
                raise _refused(keys[:-1], f"{{}} has a key of {len(key)} characters; {MAX_KEY_CHARS} are accepted.")
            _check_text(key, keys[:-1])
        if isinstance(value, dict | list):
            if len(levels) > MAX_DEPTH:
                raise _refused(keys, f"input is nested deeper than {MAX_DEPTH} levels.")
            levels.append(iter(value.items()) if isinstance(value, dict) else enumerate(value))
        elif isinstance(value, str):
            size.chars += len(value)
            if size.chars > MAX_CHARS:
                raise _refused(keys, f"input has more than {MAX_CHARS} characters.")
            if len(value) > SHORT_CHARS and MEDIA_KEYS.isdisjoint(keys):
                if len(value) > MAX_TEXT_CHARS:
                    raise _refused(keys, f"{{}} has {len(value)} characters; {MAX_TEXT_CHARS} are accepted.")
                text_chars += len(value)
                if text_chars > MAX_TEXT_CHARS:
                    raise _refused(keys, f"input has more than {MAX_TEXT_CHARS} characters of text, files not counted.")
            _check_text(value, keys)
        elif isinstance(value, float) and not math.isfinite(value):
            raise _refused(keys, f"{{}} must be a finite number, not {value}.")
        elif isinstance(value, int | float) and not -(1 << 63) <= value < 1 << 64 and not _may_be_large(value, keys):
            raise _refused(keys, "{} must be a number of at most 64 bits.")


def _may_be_large(value: float, keys: list[object]) -> bool:
    """Whether a number beyond 64 bits is allowed here: vLLM reads 1e20 as an integer everywhere but in a schema."""
    return isinstance(value, float) and any(isinstance(key, str) and key in _HOLD_SCHEMAS for key in keys)


def _check_text(text: str, keys: list[object]) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(keys, f"{{}} is not valid Unicode at character {error.start}.") from None
    if GUARD in text:
        raise _refused(keys, "{} holds U+10FFFD, which this worker keeps for itself.")


def _refused(keys: list[object], message: str) -> JobError:
    """The error for the value under `keys`; its path replaces `{}` in `message`."""
    inside = keys[1:]  # the first is the input itself
    if inside and inside[0] in ("openai_input", "body"):  # a route's body is where its client's paths begin
        del inside[0]
    where = path_of(inside)[:200] or "input"
    return JobError(Code.INVALID_INPUT, message.replace("{}", where, 1), field=where)
