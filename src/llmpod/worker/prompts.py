"""Messages or a prompt -> token ids, so that text from a client never becomes a control token.

A tokenizer turns `<|im_end|>` into a control token wherever it stands, also inside a user's message, which lets a user
end their turn and speak as the system. So a mark is put inside every control token that a client wrote; the chat
template is applied; and the text is tokenised in pieces cut at the marks. The model reads the user's characters
unchanged, as ordinary text, and the template keeps its own control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from llmpod.worker.errors import Code, JobError
from llmpod.worker.inputs import GUARD, Message, NativeRequest


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    added_tokens_decoder: dict[int, Any]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def __len__(self) -> int: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str | list[int]: ...

    def get_chat_template(self) -> str: ...


class Prompts:
    """Renders requests for one model."""

    def __init__(self, tokenizer: Tokenizer, *, chat_template: str | None, allow_control_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template or _own_template(tokenizer)
        tokens = [] if allow_control_tokens else control_tokens(tokenizer)
        self.control_texts = tuple(tokens)
        longest_first = sorted(tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts become conversations (base models have no template)."""
        return self._chat_template is not None

    def render(self, request: NativeRequest) -> list[int]:
        """The request's token ids.

        Raises:
            JobError: messages were sent to a model without a chat template, or the template refuses them.
        """
        if request.prompt is not None and not (request.apply_chat_template and self.has_chat_template):
            return self._encode(request.prompt)
        if not self.has_chat_template:
            raise JobError(
                Code.UNSUPPORTED,
                "This model has no chat template: send prompt instead, or set CUSTOM_CHAT_TEMPLATE.",
                field="messages",
            )
        return self._encode_chat(request.messages or (Message("user", request.prompt or ""),))

    def guard(self, value: Any) -> Any:
        """`value` with GUARD in every control token of every text in it, keys included; itself if there is none."""
        if self._control is None:
            return value
        if isinstance(value, str):
            return self._marked(value, GUARD)
        if isinstance(value, list):
            return [self.guard(item) for item in value]
        if isinstance(value, dict):
            return {self.guard(key): self.guard(item) for key, item in value.items()}
        return value

    def encode_guarded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text that `guard` went over, cut where the guards stand."""
        first, *rest = text.split(GUARD)
        ids = list(self._tokenizer.encode(first, add_special_tokens=add_special_tokens))
        for piece in rest:
            ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included; ids that do not exist have none."""
        known = [token_id for token_id in token_ids if 0 <= token_id < len(self._tokenizer)]
        return self._tokenizer.decode(known) if known else ""

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of the control tokens."""
        return frozenset(i for i, token in self._tokenizer.added_tokens_decoder.items() if token.special)

    def _encode(self, text: str) -> list[int]:
        mark = _unused_mark([text])
        first, *rest = self._marked(text, mark).split(mark)
        ids = list(self._tokenizer.encode(first, add_special_tokens=True))
        for piece in rest:
            ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _encode_chat(self, messages: Sequence[Message]) -> list[int]:
        mark = _unused_mark(message.content for message in messages)
        conversation = [{"role": message.role, "content": self._marked(message.content, mark)} for message in messages]
        try:
            rendered = self._tokenizer.apply_chat_template(
                conversation, chat_template=self._chat_template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # noqa: BLE001 - a template refuses a conversation by raising whatever it likes
            raise JobError(
                Code.INVALID_INPUT, f"The model's chat template refuses these messages: {error}", field="messages"
            ) from None
        if not isinstance(rendered, str):  # Mistral's tokenizers return ids and keep control tokens apart themselves
            return list(rendered)
        ids: list[int] = []
        for piece in rendered.split(mark):
            ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _marked(self, text: str, mark: str) -> str:
        """`text` with a mark after the first character of every control token in it."""
        if self._control is None:
            return text
        pieces = []
        start = position = 0
        # The search goes on right behind each cut, so that an overlapping token is cut as well.
        while match := self._control.search(text, position):
            position = match.start() + 1
            pieces.append(text[start:position])
            start = position
        pieces.append(text[start:])
        return mark.join(pieces)


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """The texts that this tokenizer would turn into control tokens."""
    return [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]


def _own_template(tokenizer: Tokenizer) -> str | None:
    try:
        return tokenizer.get_chat_template()
    except ValueError:  # transformers: "this tokenizer does not have a chat template"
        return None


def _unused_mark(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*map(set, texts))
    return next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in used)
