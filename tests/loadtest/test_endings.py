"""How a run ends early, and whether it says the truth about what it leaves behind."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmpod.loadtest.cli import main, publish
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.run import probes
from llmpod.loadtest.run.guards import Guards
from tests.loadtest.conftest import Result, command, result_of, start_door
from tests.loadtest.scripted import JobScript, Script, scripted, sse_answer

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]
ONE = ["-c", "1", "--runs", "1", "--warmup-requests", "0"]


# -- Ctrl-C --


async def test_ctrl_c_counts_the_jobs_that_have_no_id_and_run_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    async with scripted(Script(job=lambda _: JobScript(exec_s=60))) as server:
        words = ["--base-url", server.url, "-c", "6", "--runs", "50", "--warmup-requests", "0", "--out", str(out)]
        process = await start_door(*words)
        async with asyncio.timeout(20):
            while len(server.submitted) < 6:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
        assert server.cancelled == []
    said = "6 /runsync jobs have no id yet and run on; --mode run can cancel, --purge-on-abort empties the queue"
    assert f"SIGINT: stopping; {said}; the report follows" in err.decode()
    assert "cancelled" not in err.decode()
    result = result_of(130, out)
    assert result.report["notes"] == [said]
    assert result.phase["excluded"]["left running without an id"] == 6
    assert result.phase["excluded"]["cancelled by this test"] == 0
    assert {(job.error_class, job.outcome, *job.warnings) for job in result.recorded.jobs} == {
        ("client_cancelled", None, "left_running")
    }


async def test_a_runsync_that_never_answers_is_said_to_run_on(load_test: LoadTest) -> None:
    async with scripted(Script(stall=(0.0, 3.0))) as server:
        result = await load_test(server.url, *ONE, "--timeout", "1s")
    assert (result.measured[0].error_class, result.measured[0].warnings) == ("client_timeout", ["left_running"])


# -- nobody there --


def nobody(_now: float) -> dict[str, dict[str, int]]:
    workers = {"idle": 0, "running": 0, "initializing": 0, "throttled": 0}
    return {"jobs": {"inQueue": 3, "inProgress": 0, "completed": 0, "failed": 0, "retried": 0}, "workers": workers}


async def test_an_endpoint_without_workers_is_named_while_it_runs_and_ends_after_five_timeouts(
    load_test: LoadTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "DESERTED_S", 0.5)
    script = Script(job=lambda _: JobScript(delay_s=99), health=nobody, runsync_wait_s=0.1)
    async with scripted(script) as server:
        result = await load_test(
            server.url, "-c", "2", "--runs", "60", "--timeout", "400ms", "--health-interval", "100ms"
        )
        assert len(server.submitted) < 12
    assert result.code == 1
    assert "no worker has been live or starting, with jobs in the queue (max workers 0? no GPU free?)" in str(
        result.report["stopped"]
    )
    assert {job.error_class for job in result.measured} - {"client_cancelled"} == {"client_timeout"}
    assert "No worker was live at any time" in result.phase["why"]
    assert "client_timeout" in result.phase["why"]


async def test_a_worker_that_starts_is_waited_for(load_test: LoadTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "DESERTED_S", 0.3)

    def starting(now: float) -> dict[str, dict[str, int]]:
        sample = nobody(now)
        sample["workers"]["initializing"] = 1
        return sample

    script = Script(job=lambda _: JobScript(delay_s=99), health=starting)
    async with scripted(script) as server:
        words = ["-c", "7", "--runs", "7", "--timeout", "700ms", "--health-interval", "100ms", "--mode", "run"]
        result = await load_test(server.url, *words)
    assert result.report["stopped"] is None
    assert result.phase["counted"] == 7
    assert "No worker became live" in result.phase["why"]


def test_only_timeouts_in_a_row_with_nobody_there_are_hopeless() -> None:
    said = ["nobody"]
    guards = Guards(alarm=lambda: said[0] if said else None)

    def end(error_class: str | None) -> bool:
        guards.take(Job("p", 0, "measured", "run", ok=error_class is None, error_class=error_class))
        return guards.check() is not None

    assert [end("client_timeout") for _ in range(4)] == [False] * 4
    assert not end(None)
    assert [end("client_timeout") for _ in range(5)] == [False] * 4 + [True]
    said.clear()
    assert not end("client_timeout")


@pytest.mark.parametrize("mode", ["run", "runsync", "stream"])
async def test_the_same_timeout_has_the_same_name_in_every_mode(load_test: LoadTest, mode: str) -> None:
    script = Script(job=lambda _: JobScript(delay_s=99), runsync_wait_s=0.1)
    async with scripted(script) as server:
        result = await load_test(server.url, "--mode", mode, *ONE, "--timeout", "500ms")
        assert server.cancelled == ["job-0"]
    assert (result.measured[0].error_class, result.measured[0].outcome) == ("client_timeout", "failed")
    assert "followed to its end" not in (result.directory / "report.html").read_text()


# -- a phase without a result --


async def test_a_later_phase_that_fails_whole_is_in_the_exit_code_unless_an_objective_judges_it(
    load_test: LoadTest, tmp_path: Path
) -> None:
    def script(number: int) -> JobScript:
        return JobScript() if number < 1 + 5 else JobScript(status="FAILED", output=None, error="no")

    async with scripted(Script(job=script)) as server:
        result = await load_test(server.url, "-c", "1", "2", "--runs", "5")
    assert [(phase["ok"], phase["failed"]) for phase in result.report["phases"]] == [(5, 0), (0, 5)]
    assert result.code == 1
    for slo, code in {
        "exec.p50<9s": 3,  # missed where nothing was measured
        "error_rate<50%": 3,
        "success_rate>=0%": 0,
        "blocked_rate<1%": 1,
    }.items():
        ended = command("report", str(result.directory), "--slo", slo, "--out", str(tmp_path / "again"))
        assert ended.code == code, slo
        assert ("ERROR: no job succeeded in c=2" in ended.out) == (code == 1)


# -- retries --


@pytest.mark.parametrize("mode", ["runsync", "run", "stream", "openai"])
async def test_refused_submits_are_sent_again_and_told_apart_from_the_endpoints_time(
    load_test: LoadTest, mode: str
) -> None:
    def refuse(op: str, number: int) -> Any:
        if op in ("run", "runsync", "openai") and number < 2:
            return (429, '{"error": "slow down"}', {"Retry-After": "0.3"}) if number == 0 else (500, "", {})
        return None

    sse = sse_answer(["an ", "answer"], first_s=0.1)
    script = Script(job=lambda _: JobScript(exec_s=0.1), refuse=refuse, sse=lambda _: sse)
    async with scripted(script) as server:
        result = await load_test(server.url, "--mode", mode, *ONE, "--retries", "3")
    job = result.measured[0]
    assert (job.ok, job.attempts) == (True, 3)
    assert job.retry_wait_ms is not None
    assert job.retry_wait_ms >= 300 + 250
    assert result.phase["refusals"] == {"429": 1, "500": 1}
    page = (result.directory / "report.html").read_text()
    assert f"2 submits were refused first (429 x1, 500 x1), {job.retry_wait_ms / 1000:.1f} s of waiting" in page
    assert "timing_inconsistent" not in job.warnings
    assert job.total_ms is not None
    assert job.total_ms >= job.retry_wait_ms + 95
    if mode in ("runsync", "run"):
        parts = (job.delay_ms, job.exec_ms, job.overhead_ms, job.retry_wait_ms)
        assert sum(part or 0.0 for part in parts) == pytest.approx(job.total_ms)
        assert result.phase["shares"][0]["retry_ms"] == pytest.approx(job.retry_wait_ms)
        assert "refused and sent again" in page
        assert "Waiting to submit again is" in result.phase["why"]


async def test_a_stream_that_broke_after_its_first_token_is_not_sent_again(load_test: LoadTest) -> None:
    async with scripted(Script(sse=lambda _: sse_answer(["half "], done=False))) as server:
        result = await load_test(server.url, "--mode", "openai", *ONE, "--retries", "3")
        assert len(server.submitted) == 1
    assert result.measured[0].error_class == "stream_broken"


# -- writers --


@pytest.mark.parametrize("broken", ["to_json", "write_csv", "write_html", "show"])
async def test_a_writer_that_fails_costs_the_others_nothing(
    load_test: LoadTest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    broken: str,
) -> None:
    async with scripted() as server:
        result = await load_test(server.url, *ONE)
    again = tmp_path / "again"

    def fail(*_: Any, **__: Any) -> None:
        raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(publish, broken, fail)
    assert main.main(["report", str(result.directory), "--out", str(again)]) == 1
    out, err = capsys.readouterr()
    assert "internal error of the load tester: UnicodeEncodeError" in err
    assert err.count("\n") == 1
    files = {"to_json": run_files.RUN, "write_csv": "requests.csv", "write_html": "report.html"}
    assert {path.name for path in again.iterdir()} == set(files.values()) - {files.get(broken)}
    assert ("DONE" in out) == (broken != "show")
