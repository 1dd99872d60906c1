"""Constraints are compiled in time, or refused: the process that does it, and the real engine behind it."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from llmpod.worker import environ, settings
from llmpod.worker.engine import constraint_process
from llmpod.worker.engine.app.metered_engine import MeteredEngine
from llmpod.worker.engine.constraints import ConstraintCompiler, begun_within
from llmpod.worker.engine.engine import Engine
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.metering import JobMeter, current_meter
from llmpod.worker.worker import Worker
from tests.worker.conftest import Json, replies_of

pytestmark = pytest.mark.process

# -- the process, with a judge that does as it is told ----------------------------------------------------------------


class ScriptedJudge:
    """A backend that takes its time, or memory, or dies."""

    def verdict(self, constraint: Json) -> Json:
        what = constraint["what"]
        if what == "spin":
            while True:
                pass
        if what == "spin for":
            end = time.process_time() + constraint["s"]
            while time.process_time() < end:
                pass
        if what == "allocate":
            try:
                kept = [bytearray(1 << 24) for _ in range(1 << 20)]
            except MemoryError:
                return constraint_process.TOO_LARGE
            return {"fields": {"kept": len(kept)}}
        if what == "crash":
            faulthandler.disable()  # pytest's would print this process's stack
            os.kill(os.getpid(), signal.SIGABRT)
        if what == "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "noise":
            os.write(1, b"noise")
        return {"backend": "scripted"}


class Asking:
    """A client of the process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")

    def ask(self, *constraints: Json) -> None:
        for constraint in constraints:
            self._connection.sendall(json.dumps({"id": constraint["id"], "constraint": constraint}).encode() + b"\n")

    def answers(self, count: int) -> dict[int, Json]:
        """By id, in the order in which they came."""
        said = [json.loads(self._lines.readline()) for _ in range(count)]
        return {answer.pop("id"): answer for answer in said}


@pytest.fixture
def process() -> Iterator[Asking]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    server = constraint_process.Server(theirs, ScriptedJudge(), 1.0, 1 << 28)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield Asking(ours)
    ours.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ({"what": "nothing"}, {"backend": "scripted"}),
        ({"what": "noise"}, {"backend": "scripted"}),
        ({"what": "spin for", "s": 0.7}, {"backend": "scripted"}),
        ({"what": "spin"}, constraint_process.TOO_LONG),
        ({"what": "allocate"}, constraint_process.TOO_LARGE),
        ({"what": "crash"}, constraint_process.TOO_LARGE),
        ({"what": "be killed"}, constraint_process.BUSY),
    ],
)
def test_every_compilation_ends_with_a_verdict(process: Asking, what: Json, answer: Json) -> None:
    process.ask({"id": 1} | what)
    assert process.answers(1) == {1: answer}


def test_costly_constraints_do_not_keep_the_cheap_ones_waiting(process: Asking) -> None:
    process.ask(*({"id": number, "what": "spin"} for number in range(5)), {"id": 5, "what": "nothing"})
    order = list(process.answers(6))
    assert order.index(5) <= 1, "it waited for more than the quick lane"


def test_more_than_can_wait_are_sent_away_and_the_rest_is_answered(process: Asking) -> None:
    count = constraint_process.MAX_WAITING + 20
    process.ask(*({"id": number, "what": "spin for", "s": 0.02} for number in range(count)))
    answers = process.answers(count)
    assert set(answers) == set(range(count))
    assert constraint_process.BUSY in answers.values()
    assert {"backend": "scripted"} in answers.values()


# -- the engine's own compilation --------------------------------------------------------------------------------------


class StuckEngine:
    """Gets a constraint ready for ever, and knows whether the request has left it."""

    left = False

    async def generate(self, *_: object) -> AsyncGenerator[Any, None]:
        try:
            await asyncio.Event().wait()
            yield None
        finally:
            self.left = True


async def test_a_job_fails_whose_constraint_the_engine_never_gets_ready() -> None:
    engine, meter = StuckEngine(), JobMeter()
    current_meter.set(meter)
    params = SimpleNamespace(max_tokens=1, output_kind=None, structured_outputs=SimpleNamespace(structural_tag=None))
    watched = MeteredEngine(engine, lambda params, prompt: None, patience_s=0.1)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="not ready"):
        async for _ in watched.generate("", params):
            pass
    assert engine.left
    assert meter.refusal is not None
    assert meter.refusal.code is Code.GENERATION_FAILED


async def test_outputs_that_began_in_time_may_take_any_time() -> None:
    async def outputs() -> AsyncGenerator[int, None]:
        yield 1
        await asyncio.sleep(0.3)
        yield 2

    assert [output async for output in begun_within(0.1, outputs())] == [1, 2]


# -- the real thing ---------------------------------------------------------------------------------------------------


def properties(count: int) -> Json:
    names = {f"p{number}": {} for number in range(count)}
    return {"type": "object", "properties": names, "minProperties": count // 3, "maxProperties": 2 * count // 3}


RULES = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} | r{i + 1} r{i + 1}\n" for i in range(200)) + 'r200 ::= "a"'
NESTED = "(" * 90 + "a" + ")*" * 90
COSTLY: dict[str, Json] = {
    "600 properties": {"json": properties(600)},
    "1500 properties": {"json": properties(1500)},
    "nested counts": {"regex": "([^a]{1,1000}){1,1000}"},
    "optional letters": {"regex": "a?" * 4000},
    "optional dots": {"regex": ".?" * 3000},
    "repetitions": {"regex": "[^a]*" * 2000},
    "cheap to compile, costly to follow": {"grammar": "root ::= (([a-z]{1,5000}){1,5000}){1,5000}"},
    "nested stars": {"regex": NESTED},
    "rules that double": {"grammar": RULES},
}
INNOCENT = {"prompt": "Hi", "sampling_params": {"structured_outputs": {"regex": "[a-c]{1,3}0"}, "max_tokens": 64}}


@pytest.fixture(scope="module")
def config() -> Any:
    """vLLM's configuration of the demonstration model: what an engine would be made of."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    # vLLM sets variables on the way, which the next engine would take for a person's.
    with environ.temporarily({"VLLM_CPU_KVCACHE_SPACE": "1"}):
        return AsyncEngineArgs(model=str(settings.DEMO_MODEL)).create_engine_config()


@pytest.fixture(scope="module")
async def compiler(config: Any) -> AsyncIterator[ConstraintCompiler]:
    """With less time than by default."""
    compiler = ConstraintCompiler(1.0)
    await compiler.start(config)
    yield compiler
    compiler.shutdown()


@pytest.fixture
def hasty(engine: Engine, compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The session's engine with that compiler."""
    monkeypatch.setattr(engine._constraints, "check", compiler.check)
    return engine


async def test_a_verdict_is_kept_and_jobs_with_one_constraint_wait_for_one_compilation(
    compiler: ConstraintCompiler,
) -> None:
    constraint = {"json": {"type": "object", "properties": {"a": {"type": "string"}}}}
    before = compiler._number
    verdicts = await asyncio.gather(*(compiler.check(constraint, field="f") for _ in range(20)))
    assert len({id(verdict) for verdict in verdicts}) == 1
    assert compiler._number == before + 1
    began = time.monotonic()
    await compiler.check(dict(constraint), field="f")
    assert compiler._number == before + 1
    assert time.monotonic() - began < 0.1


async def test_a_process_that_was_killed_is_replaced(compiler: ConstraintCompiler) -> None:
    await compiler.check({"regex": "a"}, field="f")
    os.kill(compiler._process.pid, signal.SIGKILL)
    await asyncio.gather(*(compiler.check({"regex": f"b{number}"}, field="f") for number in range(3)))


async def test_what_another_backend_would_have_to_follow_is_refused(compiler: ConstraintCompiler) -> None:
    """vLLM's engine has one backend, that of its first request: it would follow half of this schema."""
    with pytest.raises(JobError, match="backend") as caught:
        await compiler.check({"json": {"type": "integer", "multipleOf": 3}}, field="f")
    assert (caught.value.code, caught.value.field) == (Code.INVALID_INPUT, "f")


async def longest_turn() -> float:
    """The longest time that the event loop's thread worked between two turns of this task, until cancelled.

    Its processor time: on a busy machine the kernel keeps the thread itself waiting, too.
    """
    longest, last = 0.0, time.thread_time()
    try:
        while True:
            await asyncio.sleep(0.005)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


async def test_costly_constraints_are_refused_in_time_and_an_innocent_job_is_answered_meanwhile(
    make_worker: Callable[..., Worker], hasty: Engine
) -> None:
    worker = make_worker(max_constraint_chars=0)
    watching = asyncio.create_task(longest_turn())

    async def native(name: str) -> Json:
        job_input = {"prompt": "Hi", "sampling_params": {"structured_outputs": COSTLY[name]}}
        (reply,) = await replies_of(worker, job_input, name)
        return dict(json.loads(reply["error"]))

    hostile = [asyncio.create_task(native(name)) for name in COSTLY]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    (answer,) = await replies_of(worker, INNOCENT, "innocent")
    innocent_s = time.monotonic() - began
    assert answer["choices"]
    assert not all(task.done() for task in hostile), "they were no competition"
    for task in hostile:
        error = await task
        assert (error["status"], error["retryable"], error["code"]) == (400, False, "invalid_input"), error
        assert error["field"] == "sampling_params.structured_outputs"
    assert innocent_s < 5
    watching.cancel()
    assert await watching < 0.2
    assert hasty.unfinished == 0


SCHEMA: Json = {"type": "json_schema", "json_schema": {"name": "a", "schema": properties(600)}}
USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/v1/chat/completions", {"messages": USER, "response_format": SCHEMA}, "response_format"),
        ("/v1/chat/completions", {"messages": USER, "structured_outputs": {"json": properties(600)}}, None),
        ("/v1/completions", {"prompt": "Hi", "structured_outputs": {"json": properties(600)}}, None),
        ("/v1/responses", {"input": "Hi", "text": {"format": SCHEMA["json_schema"] | {"type": "json_schema"}}}, "text"),
        (
            "/v1/messages",
            {
                "messages": USER,
                "max_tokens": 9,
                "output_config": {"format": {"type": "json_schema", "schema": properties(600)}},
            },
            "output_config",
        ),
    ],
)
async def test_every_route_refuses_a_costly_constraint_and_names_its_field(
    make_worker: Callable[..., Worker],
    hasty: Engine,
    route: str,
    body: Json,
    field: str | None,
    stream: bool,
) -> None:
    job_input = {"openai_route": route, "openai_input": body | {"stream": stream}}
    error = json.loads((await replies_of(make_worker(max_prompt_chars=0), job_input))[-1]["error"])
    assert (error["status"], error["retryable"]) == (400, False), error
    assert error["field"] == (field or "structured_outputs")
    assert "too long" in error["message"]


async def test_choices_reach_the_engine_as_vllms_own_check_leaves_them(engine: Engine) -> None:
    params = engine.sampling({"structured_outputs": {"choice": ["yes", "no"]}}, 4, stream=False)
    await engine.constrain(params)
    outputs: Any = params.structured_outputs
    assert (outputs.choice, outputs.grammar, outputs._backend) == (None, 'root ::= "yes" | "no"', "xgrammar")
