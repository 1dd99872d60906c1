"""A real engine whose process runs and does not respond: stopped by a signal, then with a dead input thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.start.engine_start import EngineStart
from llmpod.worker.engine.watchdog import Watchdog
from llmpod.worker.errors import Code, JobError
from llmpod.worker.settings import Settings
from tests.worker.conftest import Events

STALL_S = 1.5


async def found(engine: Engine, within_s: float) -> JobError | None:
    """What a watchdog finds while clients come one at a time and leave before the stall time is over."""
    failures: list[JobError] = []
    watching = asyncio.create_task(Watchdog(engine, STALL_S, failures.append).run())

    async def client(number: int) -> None:
        params = engine.sampling({}, 4, stream=False)
        async with asyncio.timeout(0.5), aclosing(engine.generate([1, 2, 3], params, f"c{number}")) as steps:
            async for _ in steps:
                pass

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            for number in range(1000):
                with contextlib.suppress(TimeoutError):
                    await client(number)
                if watching.done():
                    break
    watching.cancel()
    return failures[0] if failures else None


KINDS: list[dict[str, Any]] = [
    {"logprobs": 3},
    {"logprobs": 0, "temperature": 0.8, "top_k": 5, "top_p": 0.5},
    {"min_p": 0.1, "seed": 3},
    {"presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.5},
    {"logit_bias": {"5": 1.0}, "bad_words": ["and"], "min_tokens": 2},
    {"n": 2, "temperature": 1.0},
    {"structured_outputs": {"regex": "[ab]{3}"}},
]


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """One that has answered nobody yet, and need not survive."""
    engine = await EngineStart(Settings(), {}, Events().emit).run()
    yield engine
    engine.shutdown()


@pytest.mark.parametrize("given", KINDS, ids=lambda given: next(iter(given)))
async def test_the_first_job_of_a_kind_does_not_wait_for_a_compiler(engine: Engine, given: dict[str, Any]) -> None:
    params = engine.sampling(given, 4, stream=False)
    await engine.constrain(params)
    began = time.monotonic()
    async with aclosing(engine.generate([1, 2, 3], params, "first")) as steps:
        assert [step.finished async for step in steps][-1]
    assert time.monotonic() - began < 5  # torch.compile takes 16 s for the first of them


async def test_an_engine_that_lives_and_hears_nothing_is_found_although_its_clients_leave(engine: Engine) -> None:
    assert await found(engine, 3 * STALL_S) is None
    core = engine._llm.engine_core
    (process,) = core.resources.engine_manager.processes

    os.kill(process.pid, signal.SIGSTOP)
    try:
        failure = await found(engine, 10 * STALL_S)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert failure is not None
    assert failure.code is Code.ENGINE_STALLED
    await engine.respond()
    assert await found(engine, 2 * STALL_S) is None, "it hears again"

    # What `request_check` keeps from it: a request that vLLM's own check refuses when the process reads it.
    request = engine._llm.input_processor.process_inputs(
        "poison",
        {"type": "token", "prompt_token_ids": [1]},
        engine.sampling({}, 8, stream=False),
        supported_tasks=("generate",),
    )
    request.sampling_params.min_tokens = 9
    await type(core).add_request_async(core, request)
    failure = await found(engine, 10 * STALL_S)
    assert not engine.dead, "its process lives"
    assert failure is not None
    assert failure.code is Code.ENGINE_STALLED
