"""The text of an output: of a worker's own replies and chunks, of OpenAI's objects, and of plain strings."""

from typing import Any


def text_of(output: Any) -> str:
    """All text of an output, in order; a list is read as the chunks of one answer. "" where there is none."""
    if isinstance(output, str):
        return output
    if isinstance(output, list):
        return "".join(map(text_of, output))
    if not isinstance(output, dict):
        return ""
    choices = output.get("choices")
    if isinstance(choices, list):
        return "".join(_of_choice(choice) for choice in choices if isinstance(choice, dict))
    text = output.get("text")
    return text if isinstance(text, str) else ""


def _of_choice(choice: dict[str, Any]) -> str:
    for place in (choice.get("delta"), choice.get("message"), choice):
        if isinstance(place, dict):
            for name in ("content", "text"):
                if isinstance(place.get(name), str):
                    return str(place[name])
    tokens = choice.get("tokens")
    return "".join(map(str, tokens)) if isinstance(tokens, list) else ""
