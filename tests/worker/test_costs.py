"""What a job costs before it is admitted: next to nothing of the event loop and of memory, whatever is in it."""

from __future__ import annotations

import asyncio
import time
import typing
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from llmpod.worker.engine import first_error
from llmpod.worker.engine.engine import Engine
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, Json, replies_of
from tests.worker.loop_watch import LoopWatch

MAX_BLOCKED_S = 0.25
USER = [{"role": "user", "content": "Hi"}]
COSTLY: list[tuple[str, Json]] = [
    ("/generative_scoring", {"query": "a", "items": [""] * 60_000, "label_token_ids": [5]}),
    ("/generative_scoring", {"query": "a", "items": [""] * 1000, "label_token_ids": [5]}),
    ("/v1/chat/completions", {"messages": [0] * 100_000}),
    ("/v1/chat/completions", {"messages": [0] * 19_000}),
    ("/v1/chat/completions", {"messages": [{}] * 1900}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 1000}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 1500}]}),
    ("/v1/chat/completions", {"messages": USER, "chat_template_kwargs": {"a": [1] * 2_000_000}}),
    ("/v1/chat/completions", {"messages": USER, "chat_template_kwargs": {"a": [1] * 19_000}}),
    ("/v1/chat/completions", {"messages": USER, "logit_bias": {str(i): "x" for i in range(9000)}}),
    ("/v1/chat/completions", {"messages": USER, "stop": ["x"] * 19_000}),
    ("/v1/chat/completions", {"messages": USER, "bad_words": ["x" * 3_000_000]}),
    ("/v1/chat/completions", {"messages": USER, "stop": list(map(str, range(1000))), "max_tokens": 20}),
    ("/v1/chat/completions", {"messages": USER, "tools": [0] * 19_000}),
    ("/v1/chat/completions", {"messages": USER, "tools": [{"type": "function", "function": {"name": "f"}}] * 800}),
    ("/v1/chat/completions", {"messages": USER, "metadata": {"k": "x" * 5_000_000}}),
    ("/v1/completions", {"prompt": "a", "prompt_logprobs": ["x" * 20_000] * 900}),
    ("/detokenize", {"tokens": [5] * 2_000_000}),
    ("/detokenize", {"tokens": [5] * 19_000}),
    ("/v1/completions", {"prompt": [5] * 19_000}),
    ("/v1/completions", {"prompt": ["a"] * 19_000}),
    ("/v1/responses", {"input": [0] * 19_000}),
    ("/v1/responses", {"input": [{}] * 1000}),
    ("/v1/responses", {"input": [{"role": "user", "content": "x"}] * 900, "max_output_tokens": 2}),
    ("/v1/responses", {"input": "a", "tools": [0] * 20_000}),
    ("/v1/responses", {"input": "a", "tools": [{}] * 1900}),
    ("/v1/messages", {"messages": [0] * 19_000, "max_tokens": 5}),
    ("/v1/messages", {"messages": [{}] * 1900, "max_tokens": 5}),
    ("native", {"messages": [0] * 1_000_000}),
    ("native", {"messages": [{"role": "user", "content": ""}] * 60_000}),
    ("native", {"messages": [{"role": "user", "content": "a"}] * 900}),
    ("native", {"prompt": "a", "unknown": [1.0] * 4_000_000}),
    ("native", {"prompt": "a", "sampling_params": {"bad_words": ["x" * 3_000_000]}}),
    ("native", {"prompt": "a", "sampling_params": {"bad_words": list(map(str, range(1000))), "max_tokens": 2}}),
    ("native", {"prompt": "a", "sampling_params": {"stop": ["x"] * 200_000}, "stream": True}),
    ("native", {"prompt": "a", "sampling_params": {"stop": list(map(str, range(1000)))}, "stream": True}),
    ("native", {"prompt": "a" * 10_000_000}),
    ("native", {"prompt": "ä" * 5_000_000}),
]


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("shape", ["openai_route", "route"])
async def test_no_job_holds_the_event_loop_or_fills_the_memory(
    make_worker: Callable[..., Worker], engine: Engine, events: Events, shape: str, limited: bool
) -> None:
    """With the prompt's length limited and, as on many workers, without."""
    worker = make_worker() if limited else make_worker(max_prompt_chars=0)
    before, blocked = psutil.Process().memory_info().rss, []
    for number, (route, body) in enumerate(COSTLY):
        if route == "native" and shape == "route":
            continue
        job: Json = {shape: route, "openai_input" if shape == "openai_route" else "body": body}
        began = time.monotonic()
        async with LoopWatch() as watch:
            await asyncio.create_task(replies_of(worker, body if route == "native" else job, f"job-{number}"))
        what = f"{route} {str(body)[:50]}… {len(str(body))}"
        print(f"{watch.worst_s * 1000:7.1f} ms of {(time.monotonic() - began) * 1000:7.1f}: {what}")
        if watch.worst_s > MAX_BLOCKED_S:
            blocked.append((watch.worst_s, what))
        assert events.end_of(f"job-{number}")
    assert not blocked
    assert not events.named("bug")
    assert (engine.unfinished, worker.slots.in_use, worker.slots.waiting) == (0, 0, 0)
    assert psutil.Process().memory_info().rss - before < 200_000_000


def schemas(value: object) -> Iterator[dict[str, Any]]:
    """Every schema in one of pydantic's."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, list | tuple):
            pending += found
        elif isinstance(found, dict):
            yield found
            pending += [inner for name, inner in found.items() if name not in ("metadata", "serialization")]


def test_every_list_in_a_bodys_model_stops_at_its_first_wrong_element(engine: Engine) -> None:
    """An error per element and form is seconds of the event loop for a few kilobytes."""
    called: Any = engine.application.asgi  # a function around vLLM's application
    (application,) = (cell.cell_contents for cell in called.__closure__ if hasattr(cell.cell_contents, "router"))
    hints = [typing.get_type_hints(route.endpoint) for route in application.routes if hasattr(route, "endpoint")]
    models = {
        model
        for hint in hints
        for given in hint.values()
        for model in typing.get_args(given) or (given,)
        if "__pydantic_core_schema__" in vars(model)
    }
    collections = [
        found
        for model in models
        for found in schemas(model.__pydantic_core_schema__)
        if f"{found.get('type')}_schema" in first_error.COLLECTIONS
    ]
    assert len(models) > 5
    assert len(collections) > 50
    assert [found for found in collections if not found.get("fail_fast")] == []
