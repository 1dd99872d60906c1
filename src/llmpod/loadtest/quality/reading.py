"""The text and the object in a job's output, whichever worker wrote it."""

import json
from typing import Any

from llmpod.loadtest.intake import UnreadableError, read_json


def text_of(output: Any) -> str:
    """What the answer says. An output of no known shape is its own JSON."""
    if isinstance(output, str):
        return output
    if isinstance(output, list):
        return "".join(map(text_of, output))
    if not isinstance(output, dict):
        return "" if output is None else json.dumps(output)
    if isinstance(output.get("text"), str):
        return str(output["text"])
    choices = output.get("choices")
    if isinstance(choices, list):
        first = [one for one in choices if isinstance(one, dict) and one.get("index") in (0, None)]
        return "".join(map(_choice, first[:1]))
    return json.dumps(output, ensure_ascii=False)


def _choice(choice: dict[str, Any]) -> str:
    message = choice.get("message") or choice.get("delta")
    content = message.get("content") if isinstance(message, dict) else choice.get("text")
    tokens = choice.get("tokens")
    if not isinstance(content, str) and isinstance(tokens, list):
        content = "".join(token for token in tokens if isinstance(token, str))
    return content if isinstance(content, str) else ""


def object_of(output: Any) -> Any:
    """The JSON value of the answer: the worker's own `parsed`, else the text's. Raises UnreadableError."""
    if isinstance(output, dict) and output.get("parsed") is not None:
        return output["parsed"]
    text = text_of(output)
    if not text.strip():
        raise UnreadableError("no text")
    return read_json(text)
