"""What the answers of different workers have in common: tokens, finish reason, text."""

from dataclasses import dataclass
from typing import Any

from llmpod.loadtest.records import Job

CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Answer:
    text: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None


def read_output(output: Any) -> Answer:
    """Reads llmpod's native shape, OpenAI's, and the official vLLM worker's; a list is read as the chunks of one
    answer."""
    if isinstance(output, str):
        return Answer(text=output)
    if isinstance(output, list):
        return joined([read_output(item) for item in output])
    if not isinstance(output, dict):
        return Answer()
    prompt, tokens = _usage(output.get("usage"))
    choices = output.get("choices")
    text, reason = "", output.get("finish_reason")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict):
                text += _choice_text(choice)
                reason = choice.get("finish_reason") or reason
    elif isinstance(output.get("text"), str):
        text = output["text"]
    return Answer(text, prompt, tokens, reason if isinstance(reason, str) else None)


def joined(parts: list[Answer]) -> Answer:
    """The chunks of one answer as a whole; what is told more than once holds as it was told last."""
    text = "".join(part.text for part in parts)
    prompt = next((part.prompt_tokens for part in reversed(parts) if part.prompt_tokens is not None), None)
    tokens = next((part.output_tokens for part in reversed(parts) if part.output_tokens is not None), None)
    reason = next((part.finish_reason for part in reversed(parts) if part.finish_reason), None)
    return Answer(text, prompt, tokens, reason)


def _usage(usage: Any) -> tuple[int | None, int | None]:
    if not isinstance(usage, dict):
        return None, None
    prompt = usage.get("prompt_tokens", usage.get("input"))
    tokens = usage.get("completion_tokens", usage.get("output"))
    return (prompt if isinstance(prompt, int) else None), (tokens if isinstance(tokens, int) else None)


def _choice_text(choice: dict[str, Any]) -> str:
    for place in (choice.get("delta"), choice.get("message"), choice):
        if isinstance(place, dict):
            for key in ("content", "text", "reasoning_content", "reasoning"):
                if isinstance(place.get(key), str) and place[key]:
                    return str(place[key])
    tokens = choice.get("tokens")
    return "".join(str(token) for token in tokens) if isinstance(tokens, list) else ""


def note(job: Job, answer: Answer) -> None:
    """Puts an answer's counts on the job. Tokens nobody counted are estimated from the text, and marked as such."""
    job.prompt_tokens = answer.prompt_tokens
    job.output_tokens = answer.output_tokens
    if job.output_tokens is None and answer.text:
        job.output_tokens = max(1, round(len(answer.text) / CHARS_PER_TOKEN))
        job.tokens_estimated = True
    job.finish_reason = answer.finish_reason
    if answer.finish_reason == "length":
        job.warn("truncated")
