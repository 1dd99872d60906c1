"""The counts in a job's `end` line are what the engine produced, also when the job is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.jobs.metering import JobMeter
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, Json

CHAT = {"messages": [{"role": "user", "content": "Tell me everything."}], "max_tokens": 3000, "ignore_eos": True}


def native(stream: bool, n: int) -> Json:
    params = {"max_tokens": 3000, "ignore_eos": True, "n": n}
    return {"prompt": "Tell me everything.", "stream": stream, "sampling_params": params}


def chat(stream: bool, n: int) -> Json:
    return {"openai_route": "/v1/chat/completions", "openai_input": CHAT | {"stream": stream, "n": n}}


def completions(stream: bool, n: int) -> Json:
    body = {name: CHAT[name] for name in ("max_tokens", "ignore_eos")} | {"prompt": ["One.", "Two."]}
    return {"openai_route": "/v1/completions", "openai_input": body | {"stream": stream, "n": n}}


class Made:
    """What comes out of the engine's process."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        self.more = asyncio.Event()
        processor = engine._llm.output_processor
        process = processor.process_outputs

        def counting(outputs: list[Any], *args: Any, **named: Any) -> Any:
            # The engine's last step for the request that the test before this one cut off may still come.
            known = [output for output in outputs if output.request_id in processor.request_states]
            self.tokens += sum(len(output.new_token_ids) for output in known)
            self.more.set()
            return process(outputs, *args, **named)

        monkeypatch.setattr(processor, "process_outputs", counting)

    async def at_least(self, tokens: int) -> None:
        async with asyncio.timeout(60):
            while self.tokens < tokens:
                self.more.clear()
                await self.more.wait()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("job", [native, chat, completions])
async def test_a_stream_closed_after_some_chunks_has_counted_every_token(
    make_worker: Callable[..., Worker],
    engine: Engine,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[bool, int], Json],
    n: int,
) -> None:
    made, chunks = Made(engine, monkeypatch), 12
    replies = make_worker(max_tokens_max=0).handle({"id": "cut", "input": job(True, n)})
    async with aclosing(replies):
        for _ in range(chunks):
            await anext(replies)
        before = made.tokens
    end = events.end_of("cut")
    assert end["outcome"] == "cancelled"
    assert chunks - 3 <= before <= end["tokens_generated"] <= made.tokens
    assert end["prompt_tokens"] > 3


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("job", [native, chat, completions])
async def test_a_whole_answer_that_is_cut_off_has_counted_every_token(
    make_worker: Callable[..., Worker],
    engine: Engine,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    job: Callable[[bool, int], Json],
    n: int,
) -> None:
    made = Made(engine, monkeypatch)
    replies = make_worker(max_tokens_max=0).handle({"id": "cut", "input": job(False, n)})
    running = asyncio.ensure_future(anext(replies))
    await made.at_least(40)
    before = made.tokens
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    end = events.end_of("cut")
    assert before <= end["tokens_generated"] <= made.tokens
    assert end["prompt_tokens"] > 3


def test_what_each_answer_of_a_cut_request_had_is_counted_once() -> None:
    meter = JobMeter()
    seen = SimpleNamespace(
        prompt_token_ids=[1, 2], num_cached_tokens=1, outputs=[SimpleNamespace(index=0, token_ids=[5, 6])]
    )
    assert meter.count("r", seen) == 2
    ended: list[Any] = [None, SimpleNamespace(index=1, token_ids=[7] * 5), None, None]
    parent = SimpleNamespace(external_req_id="r", child_requests={"0_r", "2_r", "3_r"}, output_aggregator=ended)

    def state(index: int, tokens: int, *, is_prefilling: bool = False) -> Any:
        counter = SimpleNamespace(num_output_tokens=lambda: tokens)
        named = {"external_req_id": "r", "request_index": index, "detokenizer": counter}
        return SimpleNamespace(**named, prompt_len=2, num_cached_tokens=1, is_prefilling=is_prefilling)

    states = {"0_r": state(0, 9), "2_r": state(2, 3), "3_r": state(3, 0, is_prefilling=True)}
    processor = SimpleNamespace(parent_requests={"internal": parent}, request_states=states)
    for _ in range(2):
        meter.count_cut(processor, "internal")
        assert (meter.prompt_tokens, meter.cached_tokens, meter.completion_tokens) == (2, 1, 9 + 5 + 3)
    meter.count_cut(processor, "nobody's")
    assert meter.completion_tokens == 17


async def test_a_job_that_never_reached_the_engine_has_no_counts(
    make_worker: Callable[..., Worker], events: Events
) -> None:
    worker = make_worker(max_tokens_max=0, max_queue_wait=60)
    with await worker.slots.take(worker.slots.capacity):
        running = asyncio.ensure_future(anext(worker.handle({"id": "cut", "input": native(False, 1)})))
        while not worker.slots.waiting:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert "tokens_generated" not in events.end_of("cut")


async def test_load_is_every_request_in_the_engine(make_worker: Callable[..., Worker], engine: Engine) -> None:
    worker = make_worker(max_tokens_max=0)
    running = [worker.handle({"id": f"r{n}", "input": job(True, n)}) for n in (1, 2) for job in (native, chat)]
    for replies in running:
        await anext(replies)

    async def load() -> int:
        [reply] = [reply async for reply in worker.handle({"id": "load", "input": {"route": "/load"}})]
        assert isinstance(reply, dict)
        return int(reply["server_load"])

    assert await load() == engine.unfinished == 6
    for replies in running:
        await replies.aclose()
    assert await load() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_route_that_is_cut_under_a_form_stays_vllms_and_the_log_says_it(
    make_worker: Callable[..., Worker], events: Events, stream: bool
) -> None:
    bodies: list[tuple[str, Json, bool | None]] = [
        ("/v1/chat/completions", {"structured_outputs": {"regex": "[a-z]{300,400}"}}, False),
        ("/v1/chat/completions", {"structured_outputs": {"choice": ["red", "blue"]}}, True),
        ("/v1/chat/completions", {"response_format": {"type": "text"}}, None),
    ]
    for number, (route, form, complete) in enumerate(bodies):
        job_id = f"form-{number}"
        body = CHAT | {"ignore_eos": False, "max_tokens": 64, "stream": stream} | form
        job = {"id": job_id, "input": {"openai_route": route, "openai_input": body}}
        replies = [reply async for reply in make_worker().handle(job)]
        assert "error" not in replies[-1]
        end = events.end_of(job_id)
        assert (end["outcome"], end.get("complete")) == ("ok", complete)
        if complete is False:
            assert end["finish_reason"] == "length"
