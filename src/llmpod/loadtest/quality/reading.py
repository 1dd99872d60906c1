"""The text and the object in a job's output, whichever worker wrote it."""

import json
from typing import Any

from llmpod.loadtest.intake import UnreadableError, read_json
from llmpod.loadtest.model.answer_text import known_text


def text_of(output: Any) -> str:
    """What the answer says. An output of no known shape is its own JSON."""
    if isinstance(output, list):
        return "".join(map(text_of, output))
    text = known_text(output)
    if text is not None:
        return text
    return "" if output is None else json.dumps(output, ensure_ascii=False)


def object_of(output: Any) -> Any:
    """The JSON value of the answer: the worker's own `parsed`, else the text's. Raises UnreadableError."""
    if isinstance(output, dict) and output.get("parsed") is not None:
        return output["parsed"]
    text = text_of(output)
    if not text.strip():
        raise UnreadableError("no text")
    return read_json(text)
