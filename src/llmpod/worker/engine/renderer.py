"""Guardrails in vLLM's renderers: mark control tokens, tokenise between the marks, check the prompt.

A renderer makes the prompt of a request: messages, tools and arguments of the chat template -> text -> token ids. The
prompts of all routes pass through one, so this covers every field of a body. Marks: see prompts.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from llmpod.worker.engine.prompts import Prompts
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import metering
from llmpod.worker.jobs.bounds import LARGE_CHARS
from llmpod.worker.jobs.inputs import GUARD

_MARKED = "_llmpod_marked"  # of a prompt on its way to the engine: its text with the marks


class Guarded:
    """Mixin for vLLM's renderer classes (vllm/renderers/base.py), first in method resolution order."""

    prompts: Prompts | None = None
    """The model's guard. None: texts are unchanged (before it is known, and for a model that does not generate)."""
    cuts = True
    """Whether this renderer's tokens can be cut at the marks; where not, a control token in a text is refused."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        in_thread = _vllm(self)._tokenize_prompt_async

        async def tokenize(prompt: Any, params: Any) -> Any:
            short = len(prompt["prompt"]) <= LARGE_CHARS  # a thread costs more than its tokens
            return self._tokenize_prompt(prompt, params) if short else await in_thread(prompt, params)

        self._tokenize_prompt_async = tokenize

    # -- messages -> text ----------------------------------------------------------------------------------------------

    def render_messages(self, messages: Any, params: Any) -> Any:
        return _vllm(super()).render_messages(*self._guard(messages, params))

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        messages, params = self._guard(messages, params)
        if self._renders_here(messages, params):
            return _vllm(super()).render_messages(messages, params)
        return await _vllm(super()).render_messages_async(messages, params)

    def _renders_here(self, messages: list[Any], params: Any) -> bool:
        """Whether a thread would cost more than it does: a small job of texts only, and the operator's template."""
        meter = metering.current_meter.get()
        if meter is None or not meter.small or self.prompts is None:
            return False
        return params.chat_template in (None, self.prompts.chat_template) and all(map(_is_text, messages))

    def _guard(self, messages: list[Any], params: Any) -> tuple[list[Any], Any]:
        """Mark control tokens after vLLM has parsed the request and before the template is applied."""
        if self.prompts is None:
            return messages, params
        try:
            messages = self.prompts.plain(messages)
            if not self.cuts:
                self.prompts.refuse_control_tokens([messages, params.chat_template_kwargs], field="messages")
                return messages, params
            options = self.prompts.guard(params.chat_template_kwargs)
            return self.prompts.guard_messages(messages), dataclasses.replace(params, chat_template_kwargs=options)
        except JobError as error:
            raise metering.refuse(error) from None

    # -- text -> token ids ---------------------------------------------------------------------------------------------

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        text = prompt["prompt"]
        if self.prompts is None or GUARD not in text:
            return _vllm(super())._tokenize_prompt(prompt, params)
        options = params.get_encode_kwargs()
        ids = self.prompts.encode_guarded(text, add_special_tokens=options.get("add_special_tokens", True))
        limit = options.get("max_length") if options.get("truncation") else None
        if limit is not None:
            left = getattr(_vllm(self).tokenizer, "truncation_side", "right") == "left"
            ids = ids[-limit:] if left else ids[:limit]
        return prompt | {"prompt": text.replace(GUARD, ""), "prompt_token_ids": ids, _MARKED: text}

    # -- token ids -> the engine's input -------------------------------------------------------------------------------

    def process_for_engine(self, prompt: Any, *args: Any, **named: Any) -> Any:
        for part in _parts(prompt):
            _forget_cache_keys(part)
            part.pop(_MARKED, None)
        return _vllm(super()).process_for_engine(prompt, *args, **named)

    async def process_for_engine_async(self, prompt: Any, *args: Any, **named: Any) -> Any:
        for part in _parts(prompt):
            _forget_cache_keys(part)
            await self._judge(part)
        return await _vllm(super()).process_for_engine_async(prompt, *args, **named)

    async def _judge(self, part: dict[str, Any]) -> None:
        """Apply the job's guardrails to a prompt, in the job's context."""
        text = part.pop(_MARKED, part.get("prompt"))
        ids = part.get("prompt_token_ids")
        if self.prompts is None:
            return
        if text is None and ids is not None:
            if self.cuts and not self.prompts.control_ids.isdisjoint(ids):  # a client's: templates of these give text
                raise metering.refuse(JobError(Code.INVALID_INPUT, "The prompt holds the ids of control tokens."))
            if metering.judges():
                text = part["prompt"] = await asyncio.to_thread(self.prompts.decode, ids)
        if text is not None and metering.judges():
            await metering.judge(self.prompts.visible, text, aside=len(text) > LARGE_CHARS)


def guard() -> None:
    """Make vLLM create guarded renderers. Call before an engine is created."""
    from vllm.renderers.registry import RENDERER_REGISTRY

    load = RENDERER_REGISTRY.load_renderer_cls

    def load_guarded(renderer_mode: str) -> type:
        found = load(renderer_mode)
        return found if issubclass(found, Guarded) else type(found.__name__, (Guarded, found), {})

    RENDERER_REGISTRY.load_renderer_cls = load_guarded


def _vllm(renderer: object) -> Any:
    """vLLM's renderer, untyped here."""
    return cast("Any", renderer)


def _is_text(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else ()
    parts = content if isinstance(content, list) else ()
    return isinstance(content, str | list | None) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    )


def _parts(prompt: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "encoder_prompt" not in prompt:
        yield prompt
        return
    yield prompt["encoder_prompt"]
    if prompt["decoder_prompt"] is not None:
        yield prompt["decoder_prompt"]


def _forget_cache_keys(part: dict[str, Any]) -> None:
    """Remove a client's `uuid` of a file, which would be its key in a cache shared by all jobs."""
    if part.pop("multi_modal_uuids", None) is None:
        return
    files = part.get("multi_modal_data") or {}
    if any(file is None for kind in files.values() for file in (kind if isinstance(kind, list) else [kind])):
        raise metering.refuse(
            JobError(Code.INVALID_INPUT, "A file cannot be given by its uuid: send the file itself.", field="messages")
        )
