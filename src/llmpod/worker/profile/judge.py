"""The judge's question: the served model itself says whether a text asks about a blocked topic.

Its answer is one of CHOICES, by a structured output. The text is data in front of the question, and its control tokens
are marked like those of every client's text, so it cannot end its turn. A plain question behind the text suits small
models: told the topics first, and to reply "block" or "answer", Qwen2.5-Coder-1.5B-Instruct blocked all that it was
asked about.
"""

from __future__ import annotations

from collections.abc import Sequence

YES, NO = "yes", "no"
CHOICES = (YES, NO)


def conversation(topics: Sequence[str], text: str) -> tuple[tuple[str, str], ...]:
    """The judge's question about `text`, as (role, content) turns. `topics`: the policies' own descriptions."""
    question = f"Is the user asking about {', or about '.join(topics)}? Reply with one word, {YES} or {NO}."
    return (
        ("system", "You are a careful classifier."),
        ("user", f'Here is a message from a user:\n\n"{text}"\n\n{question}'),
    )
