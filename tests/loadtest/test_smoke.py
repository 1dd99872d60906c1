"""The smoke test: what passes, what each fault makes of it, what it leaves behind, and the record."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmpod.loadtest.options import SMOKE_CHECKS
from tests.loadtest.conftest import Ended, command
from tests.loadtest.scripted import JobScript, Script, ScriptedRunPod, scripted, sse_answer

pytestmark = pytest.mark.process

CHUNKS = [(0.0, {"choices": [{"index": 0, "text": "an "}]}), (0.005, {"choices": [{"index": 0, "text": "answer"}]})]
REFUSED = JobScript(status="FAILED", output=None, error=json.dumps({"code": "prompt_too_long", "message": "long"}))
BLOCKED = JobScript(output={"blocked": True, "message": "no"})
STATUS = JobScript(output={"version": "1.2.3", "model": "you/model", "commit": "abc", "slots": {"capacity": 4}})
ANSWER = JobScript()
COLD, WARM, STREAMED = 0, 1, 2


def healthy(server: ScriptedRunPod, number: int) -> JobScript:
    """What a worker makes of a smoke test's jobs: they are told apart by what they ask."""
    asked = server.submitted[number].get("input", {})
    if "route" in asked:
        return STATUS if asked["route"] == "/status" else replace(ANSWER, output={"version": "0.32.0"})
    if len(asked["prompt"]) > 100_000:
        return REFUSED
    if asked["prompt"] == "secret":
        return BLOCKED
    return replace(ANSWER, chunks=CHUNKS) if asked.get("stream") else ANSWER


async def smoke(
    *words: str, changes: dict[int, JobScript] | None = None, **script: Any
) -> tuple[Ended, ScriptedRunPod]:
    """The command against a healthy server, of which `changes` are jobs that end in another way."""
    async with scripted(Script(**script)) as server:
        given = changes or {}
        server.script.job = lambda number: given.get(number) or healthy(server, number)
        options = ("--base-url", server.url, "--format", "json", "--limits", "off", *words)
        return await asyncio.to_thread(command, "smoke", *options), server


def failed(ended: Ended) -> dict[str, str]:
    return {one["name"]: one["detail"] for one in json.loads(ended.out)["checks"] if one["passed"] is False}


async def test_a_healthy_endpoint_passes_and_says_what_it_runs(tmp_path: Path) -> None:
    record = tmp_path / "deployment.json"
    ended, server = await smoke(
        "--blocked-prompt", "secret", "--record", str(record), "--image", "you/llmpod@sha256:1", "--run", str(tmp_path)
    )
    assert ended.code == 2, "a directory that holds no run is found before anything is sent"
    assert server.submitted == []
    (tmp_path / "run.json").write_text(PHASES)
    ended, server = await smoke(
        "--blocked-prompt", "secret", "--record", str(record), "--image", "you/llmpod@sha256:1", "--run", str(tmp_path)
    )
    assert ended.code == 0, ended
    told = json.loads(ended.out)
    assert [one["name"] for one in told["checks"]] == list(SMOKE_CHECKS)
    assert {one["passed"] for one in told["checks"]} == {True}
    kept = json.loads(record.read_text())
    assert (kept["version"], kept["vllm"], kept["model"], kept["commit"]) == ("1.2.3", "0.32.0", "you/model", "abc")
    assert (kept["image"], kept["endpoint"]) == ("you/llmpod@sha256:1", server.url)
    assert kept["performance"][0]["latency_ms"]["total"]["p95"] > 0
    assert server.cancelled == []


PHASES = json.dumps(
    {"phases": [{"name": "c=1", "ok": 5, "counted": 5, "rows": {"total": {"quantiles": [{"p": 95, "value": 12.5}]}}}]}
)


@pytest.mark.parametrize(
    ("check", "words", "changes"),
    [
        ("cold", "OutOfMemory", {COLD: JobScript(status="FAILED", output=None, error="OutOfMemory")}),
        ("warm", "without an answer", {WARM: JobScript(output={"choices": []})}),
        ("warm", "says boom", {WARM: JobScript(output={"error": "boom"})}),
        ("stream", "hold 2 characters", {STREAMED: replace(ANSWER, chunks=[(0, {"choices": [{"text": "an"}]})])}),
        ("stream", "no text", {STREAMED: ANSWER}),
        ("parallel", "1 of 5 failed", {6: JobScript(status="FAILED", output=None, error="x")}),
        ("too_long", "COMPLETED with an answer", {9: ANSWER}),
        ("too_long", "FAILED with boom", {9: JobScript(status="FAILED", output=None, error="boom")}),
        ("blocked", "answers it", {10: ANSWER}),
    ],
)
async def test_a_fault_fails_its_own_check_alone(
    check: str, words: str, changes: dict[int, JobScript], tmp_path: Path
) -> None:
    record = tmp_path / "deployment.json"
    ended, _ = await smoke("--blocked-prompt", "secret", "--record", str(record), changes=changes)
    assert ended.code == 3
    found = failed(ended)
    assert list(found) == [check]
    assert words in found[check]
    assert not record.exists()


async def test_the_openai_stream_must_end_with_done() -> None:
    ended, _ = await smoke(sse=lambda _: sse_answer(["a"], done=False))
    assert failed(ended) == {"openai": "1 events, and the last is not [DONE]"}
    ended, _ = await smoke(refuse=lambda op, _: 500 if op == "openai" else None)
    assert "HTTP 500" in failed(ended)["openai"]


async def test_a_job_that_does_not_end_is_given_up_and_cancelled() -> None:
    ended, server = await smoke(
        "--timeout", "0.3s", changes={WARM: JobScript(exec_s=60), STREAMED: JobScript(exec_s=60)}
    )
    assert set(failed(ended)) == {"warm", "stream"}
    assert server.cancelled == ["job-1", "job-2"]


@pytest.mark.parametrize(("status", "told"), [(401, "RUNPOD_API_KEY"), (404, "no such endpoint"), (500, "HTTP 500")])
async def test_an_endpoint_that_does_not_answer_is_1_and_gets_no_jobs(status: int, told: str) -> None:
    ended, server = await smoke(refuse=lambda op, _: status)
    assert ended.code == 1
    assert list(failed(ended)) == ["reachable"]
    assert told in failed(ended)["reachable"]
    assert server.submitted == []
    nobody = await asyncio.to_thread(command, "smoke", "--base-url", "http://127.0.0.1:9/v2/x")
    assert nobody.code == 1
    assert "reachable" in nobody.out


async def test_strange_health_and_checks_that_are_left_out() -> None:
    ended, _ = await smoke("--skip", "openai", "--skip", "too_long", health=lambda _: {"workers": []})
    assert list(failed(ended)) == ["health"]
    left = {one["name"] for one in json.loads(ended.out)["checks"] if one["passed"] is None}
    assert left == {"openai", "too_long", "blocked"}


async def test_other_workers_need_not_say_anything_about_themselves() -> None:
    nothing = JobScript(status="FAILED", output=None, error="no such route")
    ended, _ = await smoke(changes={10: nothing, 11: nothing})
    assert ended.code == 0
    assert json.loads(ended.out)["facts"] == {}


async def test_the_table_on_a_terminal() -> None:
    async with scripted() as server:
        server.script.job = lambda number: healthy(server, number)
        ended = await asyncio.to_thread(command, "smoke", "--base-url", server.url, "--limits", "off")
    assert ended.code == 0
    assert "8 of 8 checks passed" in ended.out
    assert "version 1.2.3" in ended.out
