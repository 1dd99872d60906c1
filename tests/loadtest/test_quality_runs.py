"""Quality command against a scripted endpoint: its shares are those of the script."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmpod.loadtest.cli import commands
from llmpod.loadtest.cli.quality import run_quality
from llmpod.loadtest.errors import Exit, UsageError
from tests.loadtest.conftest import Ended, command, door, environment
from tests.loadtest.scripted import JobScript, Script, scripted

pytestmark = pytest.mark.process

Json = dict[str, Any]
_numbers = itertools.count()


def reply(text: str = "an answer", *, valid: bool | None = None, intent: str = "cv", reason: str = "stop") -> Json:
    validation = {} if valid is None else {"validation": {"valid": valid, "issues": [], "intent": intent}}
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return {"choices": [choice], "usage": {"input": 5, "output": 9, "total": 14}, **validation}


def failure(code: str) -> JobScript:
    return JobScript(status="FAILED", output=None, error=json.dumps({"code": code, "message": "no"}))


ANSWERS: dict[str, Callable[[], JobScript]] = {
    "valid": lambda: JobScript(output=reply(valid=True)),
    "invalid": lambda: JobScript(output=reply(valid=False)),
    "cut": lambda: JobScript(output=reply(valid=True, reason="length")),
    "blocked": lambda: JobScript(output={"blocked": True, "intent": "pay", "message": "no"}),
    "leak": lambda: JobScript(output=reply("90,000 a year", valid=True, intent="pay")),
    "failed": lambda: failure("overloaded"),
    "half": lambda: failure("incomplete_output"),
}


def write_rows(path: Path, counts: dict[str, int]) -> Path:
    """So many rows of each kind; the prompt tells the scripted endpoint what to answer."""
    rows = []
    for kind, n in counts.items():
        blocked = kind in ("blocked", "leak")
        expect = {"blocked": True} if blocked else {"intent": "cv", "valid": True}
        rows += [{"id": f"{kind}-{number}", "input": {"prompt": kind}, "expect": expect} for number in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


async def quality(
    tmp_path: Path, counts: dict[str, int], *words: str, gate: str = "", run: str = ""
) -> tuple[Exit, Json, Ended]:
    """Runs the command in this process: its exit code, quality.json, and what it printed. `run`: its directory."""
    dataset, directory = write_rows(tmp_path / "rows.jsonl", counts), tmp_path / (run or f"out{next(_numbers)}")
    argv = ["quality", "--dataset", str(dataset), "--out", str(directory), "--concurrency", "8", *words]
    if gate:
        (tmp_path / "x.gate").write_text(gate)
        argv += ["--gate", str(tmp_path / "x.gate")]

    async with scripted(Script(job=lambda number: ANSWERS[server.submitted[number]["input"]["prompt"]]())) as server:
        _, chosen = commands.parse([*argv, "--base-url", server.url])
        console = Console(record=True, width=160, quiet=False, file=(tmp_path / "console").open("w"))
        code = await run_quality(chosen, environment(), console)
        assert len(server.submitted) == sum(counts.values()) * chosen.repeat
    report = json.loads((directory / "quality.json").read_text())
    verdicts = [json.loads(line) for line in (directory / "quality.jsonl").read_text().splitlines()]
    assert len(verdicts) == sum(counts.values()) * chosen.repeat
    return code, report, Ended(int(code), console.export_text(), "")


def groups(report: Json) -> dict[str, Json]:
    return {group["name"]: group for group in report["groups"]}


async def test_the_reports_shares_are_those_of_the_endpoint(tmp_path: Path) -> None:
    counts = {"valid": 28, "invalid": 6, "cut": 2, "half": 2, "blocked": 3, "leak": 1, "failed": 2}
    code, report, ended = await quality(tmp_path, counts, gate="cv >= 75%\nleaks == 0\nexec.p95 < 3s\n")
    cv, blocked, overall = (groups(report)[name] for name in ("cv", "no_intent", "overall"))
    assert (cv["passed"], cv["failed"], cv["transport"], cv["cut"]) == (30, 8, 2, 2)
    assert cv["share"] == pytest.approx(30 / 38)
    assert cv["low"] < 30 / 38 < cv["high"]
    assert (blocked["passed"], blocked["failed"], blocked["leaks"]) == (3, 1, 1)
    assert (overall["passed"], overall["failed"], overall["transport"], overall["rows"]) == (33, 9, 2, 42)
    assert {one["text"]: one["passed"] for one in report["gate"]} == {
        "cv >= 75%": True,
        "leaks == 0": False,
        "exec.p95 < 3s": True,
    }
    assert (code, report["decision"]) == (Exit.SLO_FAILED, "hold")
    assert "HOLD" in ended.out
    assert "90,000 a year" in ended.out  # an example of what failed


async def test_too_many_jobs_without_an_answer_are_no_measurement(tmp_path: Path) -> None:
    code, report, ended = await quality(tmp_path, {"valid": 94, "failed": 6}, gate="cv >= 75%")
    assert (code, groups(report)["cv"]["share"]) == (Exit.INVALID, 1.0)
    assert "NOT VALID: 6 of 100 jobs had no answer" in ended.out
    code, report, _ = await quality(tmp_path, {"valid": 95, "failed": 5}, gate="cv >= 75%")
    assert (code, report["decision"]) == (Exit.PASS, "proceed")


async def test_a_worker_that_blocks_everything_passes_nothing(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"id": f"r{n}", "input": {"prompt": "x"}, "expect": {}}) for n in range(30)))
    async with scripted(Script(job=lambda _: ANSWERS["blocked"]())) as server:
        argv = ["quality", "--dataset", str(rows), "--out", str(tmp_path / "out"), "--format", "quiet"]
        _, chosen = commands.parse([*argv, "--base-url", server.url])
        (tmp_path / "x.gate").write_text("rollback unless answers >= 70%")
        chosen.gate = str(tmp_path / "x.gate")
        assert await run_quality(chosen, environment(), Console(quiet=True)) is Exit.SLO_FAILED
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert (groups(report)["answers"]["share"], report["decision"]) == (0.0, "roll back")


async def test_repeats_go_round_after_round_by_run_as_by_runsync(tmp_path: Path) -> None:
    for mode in ("run", "runsync"):
        _, report, _ = await quality(tmp_path, {"valid": 3, "invalid": 1}, "--repeat", "3", "--mode", mode)
        cv = groups(report)["cv"]
        assert (cv["passed"], cv["failed"], cv["rows"], cv["share"]) == (9, 3, 4, 0.75)


async def test_an_endpoint_that_is_not_there_ends_with_1_and_a_report(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", {"valid": 40})
    out = tmp_path / "out"
    words = ("quality", "--dataset", str(tmp_path / "rows.jsonl"), "--base-url", "http://127.0.0.1:9/v2/x")
    ended = await door(*words, "--out", str(out), "--retries", "0")
    assert ended.code == Exit.ERROR, ended.err
    assert "STOPPED" in ended.out
    report = json.loads((out / "quality.json").read_text())
    assert groups(report)["overall"]["share"] is None
    _, chosen = commands.parse([*words, "--out", str(out)])
    with pytest.raises(UsageError, match="already holds a run"):
        await run_quality(chosen, environment(), Console(quiet=True))


async def test_two_runs_are_compared_and_the_worse_one_is_named(tmp_path: Path) -> None:
    before = {"valid": 40, "blocked": 20}
    after = {"valid": 22, "invalid": 18, "blocked": 19, "leak": 1}
    runs = [str(tmp_path / "before"), str(tmp_path / "after")]
    for counts, run in zip((before, after), runs, strict=True):
        await quality(tmp_path, counts, run=run)
    ended = command("compare", *runs, "--fail-on-worse")
    assert ended.code == Exit.SLO_FAILED, ended.err
    assert "worse" in ended.out
    told = {one["intent"]: one for one in json.loads(command("compare", *runs, "--format", "json").out)["quality"]}
    assert (told["cv"]["a"], told["cv"]["b"], told["cv"]["clear"]) == (1.0, 0.55, True)
    assert (told["no_intent"]["a"], told["no_intent"]["b"], told["no_intent"]["clear"]) == (1.0, 0.95, False)
    assert command("compare", *reversed(runs), "--fail-on-worse").code == Exit.PASS
