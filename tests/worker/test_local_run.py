"""One job on this machine: what is printed, and whether it counts as a success."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from llmpod.worker import local_run
from llmpod.worker.worker import Worker

MakeWorker = Callable[..., Worker]


async def printed(worker: Worker, job_input: object) -> tuple[bool, str]:
    out = io.StringIO()
    ok = await local_run.run(worker, {"id": "local_test", "input": job_input}, out)
    return ok, out.getvalue()


async def test_a_streamed_answer_is_printed_as_it_comes_and_then_the_rest_of_the_reply(
    make_worker: MakeWorker,
) -> None:
    ok, text = await printed(make_worker(), {"prompt": "Hello", "stream": True, "sampling_params": {"temperature": 0}})
    [whole] = [reply async for reply in make_worker().handle({"id": "1", "input": {"prompt": "Hello"}})]
    assert ok
    answer, reply = text.split("\n{\n", 1)
    assert answer
    assert json.loads("{\n" + reply)["usage"]["input"] == whole["usage"]["input"]


async def test_a_plain_answer_is_printed_whole(make_worker: MakeWorker) -> None:
    ok, text = await printed(make_worker(), {"prompt": "Hello"})
    assert ok
    assert json.loads(text)["choices"][0]["text"]


async def test_nobody_reading_is_no_failure(make_worker: MakeWorker) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    for stream in (False, True):
        job = {"id": "local_test", "input": {"prompt": "Hello", "stream": stream}}
        assert await local_run.run(make_worker(), job, Closed())


async def test_a_failed_job_prints_its_error_and_is_no_success(make_worker: MakeWorker) -> None:
    for stream in (False, True):
        ok, text = await printed(make_worker(), {"prompt": "x" * 1025, "stream": stream})
        assert not ok
        line = text.strip().splitlines()[-1]
        assert line.startswith("FAILED ")
        assert json.loads(line.removeprefix("FAILED "))["code"] == "prompt_too_long"


def test_the_table_of_a_start_adds_up_to_its_whole() -> None:
    start_ms = {
        "preflight": 500.0,
        "import": 6000.0,
        "load": 5000.0,
        "weights": 1500.0,
        "warm_up": 250.0,
        "routes": 250.0,
    }
    lines = local_run.start_table(start_ms, 13.0).splitlines()
    rows = [(line[:18].rstrip(), float(line[18:].removesuffix(" s"))) for line in lines]
    assert rows == [
        *(("python, settings", 1.0), ("preflight", 0.5), ("import", 6.0), ("load", 5.0), ("  weights", 1.5)),
        *(("warm_up", 0.25), ("routes", 0.25), ("ready for jobs", 13.0)),
    ]
