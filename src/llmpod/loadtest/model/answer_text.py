"""Text of a job's output: of a worker's own replies and chunks, of OpenAI's objects, and of plain strings."""

from collections.abc import Callable
from typing import Any


def text_of(output: Any, unknown: Callable[[Any], str] = lambda _: "") -> str:
    """All text of an answer, in order; a list is read as the chunks of one answer. `unknown` gives the text of what has
    none of the known shapes."""
    if isinstance(output, list):
        return "".join(text_of(one, unknown) for one in output)
    text = _known_text(output)
    return unknown(output) if text is None else text


def _known_text(output: Any) -> str | None:
    """The text of a reply or a chunk, of several choices the first one's; None: it has none of the known shapes."""
    if isinstance(output, str):
        return output
    if not isinstance(output, dict):
        return None
    if isinstance(output.get("text"), str):
        return str(output["text"])
    choices = output.get("choices")
    if not isinstance(choices, list):
        return None
    first = (one for one in choices if isinstance(one, dict) and one.get("index") in (0, None))
    return _of_choice(next(first, {}))


def _of_choice(choice: dict[str, Any]) -> str:
    for place in (choice.get("delta"), choice.get("message"), choice):
        if isinstance(place, dict):
            for name in ("content", "text"):
                if isinstance(place.get(name), str):
                    return str(place[name])
    tokens = choice.get("tokens")
    return "".join(token for token in tokens if isinstance(token, str)) if isinstance(tokens, list) else ""
