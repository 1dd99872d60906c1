"""Sweeps over rates, mixes of prompts, and what a CI system reads."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llmpod.loadtest.cli import commands
from llmpod.loadtest.cli.planning import make_plan
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.options import RunOptions
from llmpod.loadtest.run.payload import Payloads
from tests.loadtest.conftest import Result, command
from tests.loadtest.scripted import JobScript, Script, scripted

pytestmark = pytest.mark.process

LoadTest = Any


def rates(text: str) -> list[float]:
    _, chosen = commands.parse(["--sweep-rate", text])
    plan = make_plan(chosen)
    assert plan.sweep is not None
    assert plan.sweep.by_rate
    return list(plan.sweep.rungs)


def test_a_ladder_of_rates_climbs_by_half_to_its_end() -> None:
    assert rates("1..8") == [1, 1.5, 2.25, 3.38, 5.07, 7.61, 8]
    assert rates("0.5,1,4") == [0.5, 1, 4]
    for text in ("4..1", "0..3", "3,2", "x", "0,1", "1,inf", "nan"):
        with pytest.raises(UsageError):
            rates(text)


async def test_a_rate_sweep_ends_with_the_highest_rate_that_holds(load_test: LoadTest, tmp_path: Path) -> None:
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    summary.write_text("before\n")
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=1)) as server:
        words = ["--sweep-rate", "1,2,20", "--runs", "20", "--slo", "total.p50<400ms", "--arrival", "constant"]
        result = await load_test(server.url, *words, "--junit", str(junit), "--summary", str(summary))
    assert [phase["phase"]["name"] for phase in result.report["phases"]] == [
        "1/s constant",
        "2/s constant",
        "20/s constant",
    ]
    assert (result.code, result.report["answer"]["best"]) == (0, "2/s constant")
    root = ElementTree.parse(junit).getroot()
    assert [suite.get("name") for suite in root] == ["sweep", "1/s constant", "2/s constant", "20/s constant"]
    assert not root.findall("testsuite/testcase/failure")
    text = summary.read_text()
    assert text.startswith("before\n### Load test: PASS")
    assert "highest that holds: 2/s constant" in text
    ended = command("report", str(result.directory))
    assert ended.out.count("\nphase ") == 1
    assert "highest that holds: 2/s constant, 2." in ended.out
    assert "\n1/s constant  sweep" not in ended.out  # of a sweep, the answer and what came after it


async def test_a_rate_that_the_endpoint_does_not_keep_up_with_ends_the_sweep(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05), workers=1)) as server:
        result = await load_test(server.url, "--sweep-rate", "5,60,70", "--runs", "60", "--arrival", "constant")
    assert result.report["answer"]["best"] == "5/s constant"
    assert "the queue grows" in result.report["answer"]["text"]


@pytest.mark.parametrize("cut", [False, True], ids=["a sweep that had ended", "a sweep that was killed"])
async def test_a_resumed_sweep_ends_where_the_whole_one_does(
    load_test: LoadTest, resume: Callable[[Path], Awaitable[Result]], cut: bool
) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=1)) as server:
        words = ["--sweep", "1,2,4,8", "--runs", "10", "--slo", "total.p50<150ms"]
        whole = await load_test(server.url, *words)
        sent = len(server.submitted)
        if cut:
            path = whole.directory / run_files.REQUESTS
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[: 1 + 10 + 6]))  # the rung c=1, and a part of c=2
        again = await resume(whole.directory)
        assert len(server.submitted) > sent if cut else len(server.submitted) == sent
    assert [phase["counted"] for phase in again.report["phases"]] == [10, 10]
    assert (again.code, again.report["answer"]["best"]) == (whole.code, "c=1") == (0, "c=1")
    assert len([note for note in again.report["notes"] if note.startswith("the sweep ended at c=2")]) in (1, 2)


async def test_objectives_are_test_cases_and_no_text_of_the_target_is_markup(
    load_test: LoadTest, tmp_path: Path
) -> None:
    def script(number: int) -> JobScript:
        error = "<b>|`x` \x1b[31m]]>"
        return JobScript(status="FAILED", output=None, error=error) if number % 4 == 3 else JobScript()

    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    async with scripted(Script(job=script)) as server:
        words = ["-c", "2", "--runs", "20", "--slo", "error_rate<1%", "--slo", "exec.p50<5s"]
        result = await load_test(server.url, *words, "--junit", str(junit), "--summary", str(summary))
    assert result.code == 3
    (suite,) = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    assert {case.get("name"): case.find("failure") is None for case in suite} == {
        "valid": True,
        "error_rate<1%": False,
        "exec.p50<5s": True,
    }
    assert "<b>" not in summary.read_text()
    assert "job_failed".replace("_", "&#95;") in summary.read_text()


async def test_a_mix_sends_its_prompts_by_weight_and_reports_each_kind(load_test: LoadTest, tmp_path: Path) -> None:
    mix = tmp_path / "mix.jsonl"
    rows = [
        {"name": "short", "prompt": "hello", "weight": 3, "max_tokens": 8},
        {"name": "long", "prompt": "hello " * 50, "weight": 1},
    ]
    mix.write_text("\n".join(map(json.dumps, rows)))
    async with scripted(Script()) as server:
        result = await load_test(server.url, "-c", "2", "--runs", "20", "--mix", str(mix))
        sent = Counter(body["input"]["sampling_params"]["max_tokens"] for body in server.submitted)
    assert {one["name"]: one["n"] for one in result.phase["prompts"]} == Counter(job.prompt for job in result.measured)
    assert set(sent) == {8, 150}
    payloads = Payloads(RunOptions(dataset=str(mix)))
    drawn = Counter(payloads.name(index) for index in range(4000))
    assert drawn["short"] / 4000 == pytest.approx(0.75, abs=0.03)
    for wrong in ({"weight": 0}, {"weight": "much"}, {"weight": True}, {"max_tokens": 0}, {"max_tokens": 1.5}):
        mix.write_text(json.dumps({"prompt": "x", **wrong}))
        with pytest.raises(UsageError, match="line 1"):
            Payloads(RunOptions(dataset=str(mix)))


async def test_gaps_speed_lengths_and_the_longest_gap_of_a_stream_are_reported(load_test: LoadTest) -> None:
    def sse(number: int) -> list[tuple[float, bytes]]:
        pause = 0.4 if number % 5 == 4 else 0.0
        event = b'data: {"choices": [{"delta": {"content": "a "}}]}\n\n'
        times = [0.02 * at + (pause if at > 5 else 0.0) for at in range(10)]
        usage = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 10}}\n\ndata: [DONE]\n\n'
        return [(at, event) for at in times] + [(times[-1], usage)]

    async with scripted(Script(sse=sse)) as server:
        result = await load_test(server.url, "--mode", "openai", "-c", "1", "--runs", "10")
    spreads = {one["name"]: one for one in result.phase["spreads"]}
    assert spreads["gap"]["n"] == 9 * 10
    assert spreads["gap"]["percentiles"]["p50"] < 40
    assert spreads["gap"]["max"] >= 400
    assert (spreads["input tokens"]["max"], spreads["output tokens"]["mean"]) == (7, 10)
    assert 5 < spreads["output tokens/s"]["percentiles"]["p50"] < 60
    assert result.phase["rows"]["chunk_gap_max"]["max_ms"] >= 400
    ended = command("report", str(result.directory))
    assert "chunk_gap_max" in ended.out


async def test_a_stall_is_said_with_its_time(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.02), stall=(1.5, 4.0))) as server:
        result = await load_test(server.url, "-c", "2", "--duration", "5s")
    (silence,) = result.phase["silences"]
    assert silence["to_s"] - silence["from_s"] == pytest.approx(2.5, abs=0.5)
    assert silence["in_flight"] == 2
    assert any("nothing was answered from" in doubt["text"] and not doubt["fatal"] for doubt in result.phase["doubts"])
    assert max(one["in_flight"] for one in result.phase["over_time"]) <= 2.001
    assert sum(one["done"] for one in result.phase["over_time"]) == len(result.recorded.jobs)
