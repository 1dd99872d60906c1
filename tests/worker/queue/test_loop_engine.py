"""The loop around the real engine: clients read what it said, and what ends early leaves nothing in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from llmpod.endpoint import Job, JobState
from llmpod.worker.engine.engine import Engine
from tests.worker.scripted import LoopClock, error, output, serving, streamed_text, until

pytestmark = [pytest.mark.slow, pytest.mark.process]

LONG = {"max_tokens": 2000, "ignore_eos": True}
NO_LIMIT = {"max_tokens_max": 0}


class Shared:
    """The session's engine, which a job loop may neither start nor end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize("latency_ms", [0, 40])
async def test_streams_join_to_what_the_engine_said(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, latency_ms: int
) -> None:
    prompt = "How do I prepare for a job interview?"
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:
        served.endpoint.set_faults(post_latency_ms=latency_ms)
        params = {"max_tokens": 200, "temperature": 0, "n": 1}
        whole = output(await served.run(prompt, sampling_params=params))["choices"][0]
        ids = [await served.submit(prompt, stream=True, sampling_params=params) for _ in range(8)]
        for job_id in ids:
            job = await served.ended(job_id)
            assert streamed_text(job) == whole["text"]
            assert output(job)[0]["choices"][0] == whole


async def test_merged_logprobs_are_one_row_per_token(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:
        served.endpoint.set_faults(post_latency_ms=50)
        params = {"max_tokens": 100, "logprobs": 2, "ignore_eos": True, "n": 2}
        job = await served.ended(await served.submit(stream=True, sampling_params=params), 60)
        assert job.state is JobState.COMPLETED, job.error
        for index in range(2):
            pieces = [c for chunk in job.chunks for c in json.loads(chunk)["choices"] if c["index"] == index]
            assert sum(len(piece.get("logprobs") or ()) for piece in pieces) == 100


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("latency_ms", [0, 60_000])
async def test_a_cancelled_job_leaves_no_request_in_the_engine(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, stream: bool, latency_ms: int
) -> None:
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served, LoopClock() as clock:
        served.endpoint.set_faults(post_latency_ms=latency_ms)
        ids = [await served.submit(stream=stream, sampling_params=LONG) for _ in range(4)]
        await until(lambda: engine.unfinished == 4)
        await asyncio.sleep(0.2)
        for left, job_id in reversed(list(enumerate(ids))):
            asked = clock.now()
            await served.cancel(job_id)
            await until(lambda left=left: engine.unfinished == left)
            assert clock.now() - asked < 0.05
        await until(served.at_rest)
        assert {served.events.end_of(job_id)["outcome"] for job_id in ids} == {"cancelled"}


async def test_a_timed_out_job_leaves_no_request_in_the_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    async with serving(monkeypatch, Shared(engine), max_job_seconds=0.3, **NO_LIMIT) as served:
        job = await served.run(stream=True, sampling_params=LONG)
        assert error(job)["code"] == "timeout"
        await until(served.at_rest, 1)


async def test_more_jobs_than_seats_all_complete(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:
        count = served.worker.concurrency + 40
        ids = [await served.submit(sampling_params={"max_tokens": 20, "n": 1 + i % 2}) for i in range(count)]
        states = [(await served.ended(job_id, 60)).state for job_id in ids]
        assert states == [JobState.COMPLETED] * count


CALLS = [{"name": "get_weather", "arguments": {"city": city, "days": 3}} for city in ("Zürich", "Oslo")]
STEP3 = "".join(
    f'<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather"><steptml:parameter name="city">'
    f"{city}</steptml:parameter></steptml:invoke><｜tool_call_end｜>"
    for city in ("Zürich", "Oslo")
)
PARSED = [
    ({"tool_parser_name": "xlam"}, json.dumps(CALLS)),
    ({"tool_parser_name": "step3"}, f"Sure.<｜tool_calls_begin｜>{STEP3}<｜tool_calls_end｜>"),
    (
        {"reasoning_parser_name": "granite"},
        "Here is my thought process: 1 < 2.\nHere is my response: It is sunny in Zürich.",
    ),
]


@pytest.mark.parametrize(("parser", "text"), PARSED)
async def test_a_slow_reader_gets_the_calls_and_thoughts_of_a_quick_one(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, parser: Any, text: str
) -> None:
    """The model writes what the parser of another one reads: a constraint of one choice."""
    from vllm.parser import ParserManager

    chat: Any = engine.application._state.openai_serving_chat
    monkeypatch.setattr(chat, "parser_cls", ParserManager.get_parser(**parser, enable_auto_tools=True))
    monkeypatch.setattr(engine.application, "reads_reasoning", "reasoning_parser_name" in parser)
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "structured_outputs": {"choice": [text]},
        "max_tokens": 400,
        "temperature": 0,  # a text has many tokenizations, which some parsers read differently
    } | ({"tools": [tool]} if "tool_parser_name" in parser else {})
    async with serving(monkeypatch, Shared(engine), **NO_LIMIT) as served:

        async def run(stream: bool) -> Job:
            job_input = {"openai_route": "/v1/chat/completions", "openai_input": body | {"stream": stream}}
            return await served.ended(await served.submit_input(job_input))

        whole = output(await run(stream=False))["choices"][0]["message"]
        calls = {index: call["function"] for index, call in enumerate(whole.get("tool_calls") or ())}
        assert len(calls) == (2 if "tools" in body else 0)
        assert calls or whole["reasoning"]
        quick = joined(json.loads(chunk) for chunk in (await run(stream=True)).chunks)
        assert {index: json.loads(call["arguments"]) for index, call in quick["calls"].items()} == {
            index: json.loads(call["arguments"]) for index, call in calls.items()
        }
        assert {call["name"] for call in quick["calls"].values()} == {call["name"] for call in calls.values()}
        assert quick["calls"] or (quick["reasoning"] and quick["content"])
        for latency_ms in (20, 50, 200):
            served.endpoint.set_faults(post_latency_ms=latency_ms)
            job = await run(stream=True)
            assert latency_ms < 200 or len(job.chunks) < 40, "a POST per token"
            assert joined(json.loads(chunk) for chunk in job.chunks) == quick


def joined(chunks: Iterable[str]) -> Any:
    """What OpenAI's client makes of a streamed chat answer."""
    found: Any = {"content": "", "reasoning": "", "calls": {}}
    for line in "".join(chunks).splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning"):
                found[name] += delta.get(name) or ""
            for call in delta.get("tool_calls") or ():
                made = found["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                for name in made:
                    made[name] += call["function"].get(name) or ""
    return found
