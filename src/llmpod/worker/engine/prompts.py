"""Prompt renderer: messages or a prompt -> token ids, without control tokens from a client's text.

A tokenizer turns `<|im_end|>` into a control token wherever it occurs, also inside a user's message, which lets a user
end their turn and write as the system. So a mark is put inside every control token that a client wrote; the chat
template is applied; and the text is tokenised in parts cut at the marks. The model reads the user's characters
unchanged, as ordinary text, and the template keeps its own control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

from llmpod.worker.engine.frame import FRAMED_MESSAGES, MEASURE, Frame, conversation
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.inputs import GUARD, Message, NativeRequest

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""OpenAI's roles. A template may know others, by name."""


class Tokenizer(Protocol):
    """The methods of a Hugging Face tokenizer that are used here."""

    added_tokens_decoder: dict[int, Any]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def __len__(self) -> int: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str | list[int]: ...

    def get_chat_template(self) -> str: ...


class Prompts:
    """Renders prompts for one model."""

    def __init__(self, tokenizer: Tokenizer, *, chat_template: str | None, allow_control_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template or _own_template(tokenizer)
        tokens = control_tokens(tokenizer)
        self._any_control = _pattern(tokens)
        self.control_texts = () if allow_control_tokens else tuple(tokens)
        self._control = _pattern(self.control_texts)
        self._first = frozenset(token[0] for token in self.control_texts)
        # What another text, or the template's own, could complete to a control token.
        parts = [(token[:cut], token[cut:]) for token in self.control_texts for cut in range(1, len(token))]
        self._beginnings = tuple({start for start, _ in parts if not start.isalnum()})
        self._endings = tuple({end for _, end in parts if not end.isalnum()})
        self._last = frozenset(start[-1] for start in self._beginnings)
        self._next = frozenset(end[0] for end in self._endings)
        self.control_ids: frozenset[int] = frozenset(
            token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and not allow_control_tokens
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template (base models have none)."""
        return self.chat_template is not None

    def render(self, request: NativeRequest) -> list[int]:
        """Render a request to token ids. Raises as `rendered` does."""
        return self.rendered(request)[0]

    def rendered(self, request: NativeRequest) -> tuple[list[int], str]:
        """Render a request to token ids and visible text.

        Raises:
            JobError: messages were sent to a model without a chat template, or the template refuses them.
        """
        if request.prompt is not None and not (request.apply_chat_template and self.has_chat_template):
            text = self._marked(request.prompt)
            return self.encode_guarded(text, add_special_tokens=True), self.visible(text)
        if not self.has_chat_template:
            raise JobError(
                Code.UNSUPPORTED,
                "This model has no chat template: send prompt instead, or set CUSTOM_CHAT_TEMPLATE.",
                field="messages",
            )
        messages = request.messages or (Message("user", request.prompt or ""),)
        return self._render_chat(messages, system=request.system, prefill=request.prefill)

    def asked(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Render a question of this worker, as (role, content) turns; without a chat template, one after another.

        A template that knows the switch is told that the model is to answer without reasoning first.
        """
        if not self.has_chat_template:
            text = "\n\n".join(self._marked(content) for _, content in turns) + "\n"
            return self.encode_guarded(text, add_special_tokens=True)
        system = next((content for role, content in turns if role == "system"), None)
        said = [Message("user", content) for role, content in turns if role == "user"]
        return self._render_chat(said, system=system, enable_thinking=False)[0]

    def guard(self, value: Any) -> Any:
        """Put GUARD into every control token in the texts of `value`, keys included. Unchanged if there is none.

        This includes texts inside JSON texts: vLLM passes a tool call's arguments to the template decoded.

        Raises:
            JobError: a text is JSON that is nested too deep to be looked through.
        """
        if not self.control_texts:
            return value
        if isinstance(value, str):
            try:
                decoded = _from_json(value)
                if decoded is None:
                    return self._marked(value)
                guarded = self.guard(decoded)
            except RecursionError:
                raise JobError(Code.INVALID_INPUT, "A text is JSON that is nested too deep.") from None
            # JSON in whose escapes something hides is written anew, with the marks.
            return self._marked(value) if guarded == decoded else self._cut(json.dumps(guarded, ensure_ascii=False))
        if isinstance(value, list):
            return [self.guard(item) for item in value]
        if isinstance(value, dict):
            return {self.guard(key): self.guard(item) for key, item in value.items()}
        return value

    def guard_messages(self, messages: list[Any]) -> list[Any]:
        """Apply `guard` to messages, and mark roles that neither OpenAI nor the template knows.

        Some templates make a control token of every role: `'<|' + role + '|>'`.
        """
        guarded = self.guard(messages)
        for message in guarded if self.control_texts else ():
            role = message.get("role") if isinstance(message, dict) else None
            if isinstance(role, str) and not self._knows_role(role):
                message["role"] = f"{GUARD}{role}{GUARD}"
        return list(guarded)

    def plain(self, value: Any) -> Any:
        """Replace vLLM's iterators in `value`, which can be read only once, by lists."""
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple | Iterator):
            return [self.plain(item) for item in value]
        return value

    def refuse_control_tokens(self, value: Any, *, field: str) -> None:
        """Reject control tokens, for models whose prompts cannot be cut at marks.

        Raises:
            JobError: a text in `value` holds a control token.
        """
        try:
            found = self._holds_control(value)
        except RecursionError:
            raise JobError(Code.INVALID_INPUT, f"{field} holds JSON that is nested too deep.", field=field) from None
        if found:
            raise JobError(Code.INVALID_INPUT, f"{field} holds a control token of the model.", field=field)

    def visible(self, text: str) -> str:
        """Text for the guardrails: each of the template's control tokens becomes a line break."""
        if self._any_control is not None:
            text = self._any_control.sub("\n", text)
        return text.replace(GUARD, "")

    def encode_guarded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenise a text that `guard` has marked, in parts cut at the marks."""
        first, *rest = text.split(GUARD)
        ids = list(self._tokenizer.encode(first, add_special_tokens=add_special_tokens))
        for piece in filter(None, rest):
            ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included; unknown ids have none."""
        known = [token_id for token_id in token_ids if 0 <= token_id < len(self._tokenizer)]
        return self._tokenizer.decode(known) if known else ""

    def frame(self) -> Frame:
        """The template's own text around a native job's messages."""
        return Frame.measured(self._visible(1), self._visible(FRAMED_MESSAGES))

    def _visible(self, length: int) -> str | None:
        try:
            return self._render_chat(conversation(length))[1] if self.has_chat_template else None
        except JobError:
            return None

    def _render_chat(
        self, messages: Sequence[Message], *, system: str | None = None, prefill: str | None = None, **options: Any
    ) -> tuple[list[int], str]:
        """Token ids and visible text. `system` and `prefill` are this worker's, and no part of the visible text.

        `options`: variables of the template.
        """
        conversation = [{"role": message.role, "content": self._marked(message.content)} for message in messages]
        own = self._marked(system.strip()) if system else ""
        rendered = self._apply_template(self._with_system(conversation, own), **options)
        beginning = self._marked(prefill or "")
        if not isinstance(rendered, str):  # Mistral's tokenizers return ids and keep control tokens apart themselves
            ids = [*rendered, *self.encode_guarded(beginning, add_special_tokens=False)]
            return ids, self._without(own, self.visible(self.decode(rendered)))
        ids = self.encode_guarded(rendered + beginning, add_special_tokens=False)
        return ids, self._without(own, self.visible(rendered))

    def _apply_template(self, conversation: list[dict[str, str]], **options: Any) -> str | list[int]:
        try:
            return self._tokenizer.apply_chat_template(
                conversation, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True, **options
            )
        except Exception as error:  # noqa: BLE001 - a template refuses a conversation by raising whatever it likes
            raise JobError(
                Code.INVALID_INPUT, f"The model's chat template refuses these messages: {error}", field="messages"
            ) from None

    def _with_system(self, conversation: list[dict[str, str]], system: str) -> list[dict[str, str]]:
        if not system:
            return conversation
        if self._takes_system:
            return [{"role": "system", "content": system}, *conversation]
        first, *others = conversation
        return [first | {"content": f"{system}\n\n{first['content']}"}, *others]

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the chat template accepts a system message and prints it; those of some models do not."""
        try:
            rendered = self._apply_template([{"role": role, "content": MEASURE + role} for role in ("system", "user")])
        except JobError:
            return False
        text = rendered if isinstance(rendered, str) else self.decode(rendered)
        return f"{MEASURE}system" in text

    def _without(self, own: str, visible: str) -> str:
        return visible.replace(self.visible(own), "", 1) if own else visible

    def _knows_role(self, role: str) -> bool:
        return role in ROLES or any(f"{quote}{role}{quote}" in (self.chat_template or "") for quote in "'\"")

    def _holds_control(self, value: Any) -> bool:
        if isinstance(value, str):
            found = self._control is not None and self._control.search(value) is not None
            return found or self._holds_control(_from_json(value))
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return isinstance(inner, list) and any(map(self._holds_control, inner))

    def _marked(self, text: str) -> str:
        """Mark every control token in `text`, and places where one could form by concatenation.

        Marks in the client's text are removed. Concatenation: `<|im_` in one part of a message, `end|>` in the next.
        """
        text = self._cut(text.replace(GUARD, ""))
        before = GUARD if text[:1] in self._next and text.startswith(self._endings) else ""
        return before + text + (GUARD if text[-1:] in self._last and text.endswith(self._beginnings) else "")

    def _cut(self, text: str) -> str:
        if self._control is None or not any(character in text for character in self._first):
            return text
        pieces = []
        start = position = 0
        # The search goes on right behind each cut, so that an overlapping token is cut as well.
        while match := self._control.search(text, position):
            position = match.start() + 1
            pieces.append(text[start:position])
            start = position
        pieces.append(text[start:])
        return GUARD.join(pieces)


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """The texts that this tokenizer turns into control tokens."""
    return [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]


def _from_json(text: str) -> Any:
    """Decode a text with escapes as JSON; None if it is not JSON or has no escapes."""
    if "\\" not in text or text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _pattern(tokens: Sequence[str]) -> re.Pattern[str] | None:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _own_template(tokenizer: Tokenizer) -> str | None:
    try:
        return tokenizer.get_chat_template()
    except ValueError:  # transformers: "this tokenizer does not have a chat template"
        return None
