"""What stands between vLLM's application and the engine, with an engine that merges like vLLM's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from llmpod.worker.engine.app.asgi import Exchange
from llmpod.worker.engine.app.metered_engine import Bounded, MeteredEngine
from llmpod.worker.errors import Code
from llmpod.worker.jobs.metering import JobMeter, RequestRefusedError, current_meter
from llmpod.worker.jobs.slots import Slots


class MergingEngine:
    """Makes a token per tick; an output has all those that nobody has read."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    async def generate(self, prompt: object, params: Any) -> AsyncGenerator[Any, None]:
        made = asyncio.Queue[int]()

        async def make() -> None:
            for number in range(min(self.tokens, params.max_tokens or self.tokens)):
                made.put_nowait(number)
                await asyncio.sleep(0.001)
            made.put_nowait(-1)

        making = asyncio.create_task(make())
        try:
            finished = False
            while not finished:
                ready = [await made.get()]
                while not made.empty():
                    ready.append(made.get_nowait())
                finished = ready[-1] == -1
                tokens = [number for number in ready if number >= 0]
                choice = SimpleNamespace(index=0, token_ids=tokens, finish_reason="length" if finished else None)
                yield SimpleNamespace(
                    outputs=[choice], finished=finished, prompt_token_ids=[1, 2], num_cached_tokens=0, metrics=None
                )
        finally:
            making.cancel()


def no_detokenizer(params: object, prompt_ids: object) -> Any:
    raise AssertionError("nothing reads these answers token by token")


async def read(count: int, pause_s: float) -> tuple[JobMeter, list[bytes], int]:
    """The meter, the pieces and the number of events of one streamed request, read by somebody who takes his time."""
    engine = MeteredEngine(MergingEngine(count), no_detokenizer)
    events = 0

    async def answer(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            nonlocal events
            kind = SimpleNamespace(name="DELTA")
            params = SimpleNamespace(max_tokens=None, output_kind=kind, structured_outputs=None)
            async for output in engine.generate("", params):
                events += 1
                yield b"".join(b"%d " % token for token in output.outputs[0].token_ids)
            await asyncio.sleep(0.005)
            yield b"done"

        return StreamingResponse(body())

    meter = JobMeter()
    current_meter.set(meter)
    pieces = []
    async with Exchange(Starlette(routes=[Route("/", answer)]), "GET", "/") as exchange:
        meter.wanted = exchange.wanted
        async for piece in exchange.pieces(meter.ended):
            pieces.append(piece)
            await asyncio.sleep(pause_s)
    return meter, pieces, events


async def test_while_a_reader_is_busy_the_engine_merges_and_one_event_has_it_all() -> None:
    meter, pieces, events = await read(100, pause_s=0.05)
    assert b"".join(pieces) == b"".join(b"%d " % number for number in range(100)) + b"done"
    assert events < 30
    assert pieces[-1].endswith(b"99 done"), "the last words were sent on their own"
    assert (meter.requests, meter.completion_tokens, meter.finish_reason) == (1, 100, "length")


async def test_a_reader_that_waits_gets_every_token_when_it_is_made() -> None:
    _, pieces, events = await read(20, pause_s=0)
    assert b"".join(pieces) == b"".join(b"%d " % number for number in range(20)) + b"done"
    assert events > 10


@pytest.mark.parametrize("asked", [None, 8, 1000])
async def test_a_request_beyond_the_limit_is_refused_and_its_parameters_stay_as_vllm_checked_them(
    asked: int | None,
) -> None:
    meter = JobMeter(max_tokens=7)
    current_meter.set(meter)
    params = SimpleNamespace(max_tokens=asked, output_kind=None, structured_outputs=None)
    with pytest.raises(ValueError, match="7 tokens"):
        async for _ in MeteredEngine(MergingEngine(100), no_detokenizer).generate("", params):
            pass
    assert params.max_tokens == asked
    assert meter.refusal is not None
    assert (meter.refusal.failure.status, meter.refusal.field) == (400, "max_tokens")


def test_a_bounded_store_forgets_the_oldest() -> None:
    store = Bounded[int](2)
    for number in range(4):
        store[str(number)] = number
    store["2"] = 5
    assert store == {"3": 3, "2": 5}


# -- slots -------------------------------------------------------------------------------------------------------------


class CountingEngine:
    """Works on each request for a tick, and knows how many there are."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0

    async def encode(self, prompt: object) -> AsyncGenerator[object, None]:
        self.now += 1
        self.all += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.001)
            yield prompt
        finally:
            self.now -= 1


async def embed(engine: CountingEngine, meter: JobMeter, inputs: int) -> None:
    """A job's requests, all at once, as vLLM's application makes them."""
    current_meter.set(meter)
    watched = MeteredEngine(engine, no_detokenizer)

    async def one(number: int) -> None:
        async for _ in watched.encode(number):
            pass

    async with asyncio.TaskGroup() as group:
        for number in range(inputs):
            group.create_task(one(number))


async def test_the_requests_of_a_job_take_slots_and_leave_other_jobs_their_turn() -> None:
    engine, slots = CountingEngine(), Slots(3, 10)
    large = asyncio.create_task(embed(engine, JobMeter(take=slots.take), 300))
    while engine.all < 5:
        await asyncio.sleep(0)
    await asyncio.create_task(embed(engine, JobMeter(take=slots.take), 1))
    assert engine.all < 20, "a small job waited for all of a large one"
    assert slots.waiting <= 1
    await large
    assert (engine.all, engine.most, engine.now) == (301, 3, 0)
    assert (slots.in_use, slots.waiting) == (0, 0)


async def test_a_job_that_is_cancelled_while_its_requests_wait_leaves_no_slot() -> None:
    engine, slots = CountingEngine(), Slots(2, 10)
    job = asyncio.create_task(embed(engine, JobMeter(take=slots.take), 100))
    while engine.all < 5:
        await asyncio.sleep(0)
    job.cancel()
    await asyncio.wait({job})
    assert (engine.now, slots.in_use, slots.waiting) == (0, 0, 0)


async def test_a_job_with_too_many_requests_at_once_is_refused_and_so_is_one_in_a_full_worker() -> None:
    engine, slots = CountingEngine(), Slots(1, 0.01)
    for meter, code in (
        (JobMeter(take=slots.take, most=4), Code.INVALID_INPUT),
        (JobMeter(take=slots.take), Code.OVERLOADED),
    ):
        with await slots.take(), pytest.raises(ExceptionGroup) as caught:
            await asyncio.create_task(embed(engine, meter, 5))
        assert caught.group_contains(RequestRefusedError)
        assert meter.refusal is not None
        assert meter.refusal.code is code
    assert (engine.all, slots.in_use, slots.waiting) == (0, 0, 0)
