"""Shapes, what is counted, what stops a run, and what is left on disk when it is stopped."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llmpod.loadtest.analysis.workers import start_classes
from llmpod.loadtest.errors import DirectoryError
from llmpod.loadtest.model import run_files
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase
from llmpod.loadtest.run.closed_loop import Feed
from tests.loadtest.conftest import Result, command, result_of, start_door
from tests.loadtest.scripted import JobScript, Script, scripted

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]
Resume = Callable[[Path], Awaitable[Result]]


async def test_warm_up_and_cool_down_are_sent_recorded_and_not_counted(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05))) as server:
        result = await load_test(server.url, "-c", "4", "--runs", "12")
        sent = len(server.submitted)
    roles = [job.role for job in result.recorded.jobs]
    assert (roles.count("warmup"), roles.count("measured")) == (4, 12)
    assert roles.count("cooldown") == result.phase["excluded"]["cool-down"] <= 4
    assert result.phase["counted"] == 12
    assert sent == len(roles)
    last_measured = max(job.done_ms for job in result.recorded.jobs if job.role == "measured")
    assert all(job.sent_ms <= last_measured for job in result.recorded.jobs)


async def test_load_does_not_fall_while_the_last_measured_jobs_run(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.2), workers=1)) as server:
        result = await load_test(server.url, "-c", "3", "--runs", "6")
    # One worker, three clients: every measured job waits for the two before it, also the very last.
    assert all(job.total_ms == pytest.approx(600, abs=60) for job in result.measured)


async def test_each_concurrency_is_a_phase_that_starts_on_an_idle_endpoint(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=2)) as server:
        result = await load_test(server.url, "-c", "1", "2,4", "--runs", "4")
    assert [phase["phase"]["name"] for phase in result.report["phases"]] == ["c=1", "c=2", "c=4"]
    ends: dict[str, float] = {}
    for job in result.recorded.jobs:
        ends[job.phase] = max(ends.get(job.phase, 0), job.done_ms)
    starts = {name: min(job.sent_ms for job in result.recorded.jobs if job.phase == name) for name in ends}
    assert ends["c=1"] <= starts["c=2"]
    assert ends["c=2"] <= starts["c=4"]


async def test_a_duration_ends_a_phase_and_a_soak_has_slices(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05))) as server:
        result = await load_test(server.url, "-c", "2", "--soak", "3s", "--slice", "1s")
    assert result.phase["phase"]["shape"] == "soak"
    assert result.phase["window_s"] == pytest.approx(3, abs=0.3)
    assert 3 <= len(result.phase["slices"]) <= 4
    assert sum(one["n"] for one in result.phase["slices"]) == result.phase["counted"]


async def test_poisson_and_gamma_and_stages_and_replay_send_what_their_seed_says(
    load_test: LoadTest, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("100.0\n" + json.dumps({"timestamp": 100.2}) + "\n100.5\n")
    shapes = [
        (["--rate", "40", "--duration", "1s"], "poisson"),
        (["--rate", "40", "--duration", "1s", "--arrival", "gamma", "--burstiness", "0.5"], "gamma"),
        (["--stages", "500ms:20,500ms:20,500ms:0", "--arrival", "constant"], "stages"),
        (["--replay", str(trace), "--time-scale", "2"], "replay"),
        (["--ramp", "0..40", "--duration", "1s", "--arrival", "constant"], "ramp"),
    ]
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.005))) as server:
        results = {shape: await load_test(server.url, *words) for words, shape in shapes}
        again = await load_test(server.url, *shapes[0][0])
    for shape, result in results.items():
        assert result.phase["phase"]["shape"] == shape
        assert all(job.scheduled_ms is not None and job.sent_ms >= job.scheduled_ms for job in result.measured)

    def offsets(result: Result) -> list[float]:
        first = result.measured[0].scheduled_ms
        return [round(job.scheduled_ms - first) for job in result.measured]

    assert offsets(results["replay"]) == [0, 400, 1000]
    assert offsets(results["poisson"]) == pytest.approx(offsets(again), abs=1)
    assert offsets(results["poisson"]) != offsets(results["gamma"])
    assert len(results["stages"].measured) == pytest.approx(5 + 10 + 5, abs=1)
    assert len(results["ramp"].measured) == pytest.approx(20, abs=1)


async def test_a_sweep_stops_at_the_knee_and_says_so(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=2)) as server:
        result = await load_test(server.url, "--sweep", "auto", "--runs", "16")
    names = [phase["phase"]["name"] for phase in result.report["phases"]]
    assert names == ["c=1", "c=2", "c=4"]
    assert result.report["answer"]["best"] == "c=2"
    assert result.report["answer"]["text"].startswith("knee: c=2, ")
    rates = [phase["throughput_per_s"] for phase in result.report["phases"]]
    assert rates[1] == pytest.approx(2 * rates[0], rel=0.15)
    assert all(phase["little"]["holds"] for phase in result.report["phases"])


async def test_a_sweep_stops_at_the_first_broken_objective(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=1)) as server:
        result = await load_test(server.url, "--sweep", "1..8", "--runs", "8", "--slo", "total.p50<150ms")
    assert [phase["phase"]["name"] for phase in result.report["phases"]] == ["c=1", "c=2"]
    assert result.code == 0
    assert result.report["answer"]["best"] == "c=1"
    assert result.report["answer"]["text"].startswith("highest that holds: c=1, ")
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=1)) as server:
        result = await load_test(server.url, "--sweep", "1..8", "--runs", "8", "--slo", "total.p50<50ms")
    assert result.code == 3
    assert result.report["answer"]["best"] is None
    assert result.report["answer"]["text"].startswith("none holds: already c=1")


async def test_prompts_differ_so_that_a_prefix_cache_does_not_answer(load_test: LoadTest) -> None:
    async with scripted() as server:
        await load_test(server.url, "-c", "2", "--runs", "6", "--prompt", "Hello")
        prompts = [body["input"]["prompt"] for body in server.submitted]
        assert all(prompt.endswith("Hello") and prompt.startswith("[c=2 #") for prompt in prompts)
        sampling = server.submitted[0]["input"]["sampling_params"]
    assert sampling == {"max_tokens": 150, "temperature": 0.2}


async def test_a_guard_stops_a_run_cancels_what_is_out_and_still_reports(load_test: LoadTest) -> None:
    slow_after = 30
    script = Script(
        job=lambda n: JobScript(status="FAILED", output=None, error="boom") if n < slow_after else JobScript(exec_s=60)
    )
    async with scripted(script) as server:
        result = await load_test(
            server.url, "--mode", "run", "-c", "4", "--runs", "200", "--max-error-rate", "10%", "--warmup-requests", "0"
        )
        assert len(server.submitted) < 60
        outstanding = list(range(slow_after, len(server.submitted)))
        assert len(server.cancelled) == len(outstanding)
    assert result.code == 4
    assert "--max-error-rate" in result.report["stopped"]


async def test_the_queue_is_purged_only_when_asked_and_only_on_an_abort(load_test: LoadTest) -> None:
    failing = Script(job=lambda _: JobScript(status="FAILED", output=None, error="boom"))
    for words, purged in ((["--purge-on-abort"], 1), ([], 0)):
        async with scripted(failing) as server:
            await load_test(server.url, "-c", "8", "--runs", "60", "--max-error-rate", "10%", *words)
            assert server.purged == purged
    async with scripted() as server:
        await load_test(server.url, "-c", "1", "--runs", "2", "--purge-on-abort")
        assert server.purged == 0


async def test_health_is_not_asked_when_that_is_wished(load_test: LoadTest) -> None:
    async with scripted() as server:
        result = await load_test(server.url, "-c", "1", "2", "--runs", "3", "--health-interval", "0")
        assert [op for op, _ in server.calls if op == "health"] == []
    assert result.phase["health"] is None


async def test_max_cost_stops_a_run(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05))) as server:
        # 3600 $/h is 1 $ per second of execution: 0.5 $ are ten jobs of 50 ms.
        result = await load_test(server.url, "-c", "1", "--runs", "100", "--gpu-price", "3600", "--max-cost", "0.5")
    assert result.code == 4
    assert 10 <= len(result.recorded.jobs) <= 13
    assert result.phase["cost"]["busy_usd"] == pytest.approx(0.05 * result.phase["counted"], rel=0.01)


async def test_abort_on_fail_does_not_wait_for_the_end(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05))) as server:
        result = await load_test(server.url, "-c", "2", "--runs", "2000", "--slo", "exec.p50<10ms", "--abort-on-fail")
    assert result.code == 4
    assert len(result.recorded.jobs) < 200


async def test_a_change_of_workers_withholds_the_verdict_except_in_a_soak(load_test: LoadTest) -> None:
    def health(now: float) -> dict[str, dict[str, int]]:
        workers = {"idle": 0, "running": 1 if now < 1.2 else 2, "initializing": 0, "throttled": 1}
        return {"jobs": {"inQueue": 3, "inProgress": 1, "completed": 0, "failed": 0, "retried": 0}, "workers": workers}

    script = Script(job=lambda _: JobScript(exec_s=0.05), health=health)
    async with scripted(script) as server:
        words = ["--scaler-value", "1", "--duration", "2500ms", "--slo", "total.p50<2s"]
        result = await load_test(server.url, "-c", "4", *words)
    assert result.code == 5
    assert any("live workers changed" in doubt["text"] and doubt["fatal"] for doubt in result.phase["doubts"])
    assert {one["workers"] for one in result.phase["strata"]} == {1, 2}
    timeline = result.phase["health"]
    assert timeline["throttled_s"] == pytest.approx(2.5, abs=0.4)
    assert timeline["short_s"] > 2
    async with scripted(script) as server:
        result = await load_test(server.url, "-c", "1", "--soak", "2500ms", "--slo", "total.p50<2s")
    assert result.code == 0


async def test_cold_starts_and_wakes_are_told_from_warm_jobs(load_test: LoadTest) -> None:
    def job(number: int) -> JobScript:
        delay = {0: 0.9, 6: 0.8}.get(number, 0.02)
        return JobScript(delay_s=delay, exec_s=0.02, worker="a" if number < 6 else "b")

    async with scripted(Script(job=job)) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "12", "--warmup-requests", "0")
    classes = {one["name"]: one["n"] for one in result.phase["classes"]}
    assert classes == {"cold": 0, "wake": 2, "warm": 10}
    assert {one["worker_id"]: one["jobs"] for one in result.phase["workers"]} == {"a": 6, "b": 6}
    assert result.phase["jain"] == 1.0


def test_where_every_job_starts_a_worker_every_job_is_cold() -> None:
    jobs = [
        Job("c=1", n, "measured", "run", sent_ms=n * 60e3, done_ms=n * 60e3 + 13e3, delay_ms=12e3, ok=True)
        for n in range(6)
    ]
    for job in jobs:
        job.worker_id = f"worker-{job.index}"
    assert set(start_classes(jobs, jobs).values()) == {"cold"}


# -- the disk --


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
async def test_ctrl_c_cancels_what_is_out_and_writes_the_report(tmp_path: Path, name: str) -> None:
    script = Script(job=lambda number: JobScript(exec_s=0.05 if number < 5 else 60))
    async with scripted(script) as server:
        out = tmp_path / "run"
        process = await start_door(
            "--base-url", server.url, "--mode", "run", "-c", "3", "--runs", "50", "--out", str(out)
        )
        async with asyncio.timeout(20):
            while len(server.submitted) < 8:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        process.send_signal(getattr(signal, name))
        async with asyncio.timeout(20):
            _, err = await process.communicate()
        assert len(server.cancelled) == 3
    assert process.returncode == 130
    assert b"Traceback" not in err
    result = result_of(130, out)
    assert result.report["exit_code"] == 130
    assert (out / "report.html").stat().st_size > 1000
    assert [job.error_class for job in result.recorded.jobs].count("client_cancelled") == 3
    assert result.recorded.orphans == []
    assert "3 of 3 outstanding jobs were cancelled" in " ".join(result.report["notes"])


async def test_a_second_ctrl_c_ends_the_clean_up_and_not_the_report(tmp_path: Path) -> None:
    # From 8 s on nothing is answered any more, /cancel included.
    async with scripted(Script(job=lambda _: JobScript(exec_s=60), stall=(8.0, 40.0))) as server:
        out = tmp_path / "run"
        process = await start_door("--base-url", server.url, "--mode", "run", "-c", "2", "--out", str(out))
        async with asyncio.timeout(35):
            while len(server.submitted) < 2 or server.now < 8.2:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.7)
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert "clean-up was cut short" in " ".join(result_of(130, out).report["notes"])


async def test_a_full_disk_cancels_what_is_out_and_reports_what_was_measured(
    load_test: LoadTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = run_files.Journal.request

    def full(self: run_files.Journal, job: Job) -> None:
        if job.index >= 5:
            raise DirectoryError("cannot write requests.jsonl: No space left on device")
        written(self, job)

    monkeypatch.setattr(run_files.Journal, "request", full)
    script = Script(job=lambda number: JobScript(exec_s=60 if number == 4 else 0.05))
    async with scripted(script) as server:
        result = await load_test(server.url, "--mode", "run", "-c", "2", "--runs", "30", "--warmup-requests", "0")
        assert len(server.submitted) <= 8
        assert server.cancelled == ["job-4"]
    assert result.code == 1
    assert result.phase["ok"] == 4
    assert "No space left" in result.report["stopped"]
    assert (result.directory / "report.html").exists()


async def test_a_killed_run_loses_no_finished_job_and_resume_cancels_its_orphans_and_completes_it(
    tmp_path: Path, resume: Resume
) -> None:
    out = tmp_path / "run"
    script = Script(job=lambda number: JobScript(exec_s=60 if number in (7, 8) else 0.05))
    async with scripted(script) as server:
        process = await start_door(
            "--base-url",
            server.url,
            "--mode",
            "run",
            "-c",
            "2",
            "--runs",
            "12",
            "--out",
            str(out),
        )
        async with asyncio.timeout(20):
            while len(server.submitted) < 9:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        process.kill()
        await process.communicate()
        before = run_files.read(out)
        assert {job.job_id for job in before.jobs} == {f"job-{n}" for n in range(7)}
        assert before.orphans == ["job-7", "job-8"]
        killed = command("report", str(out), "--out", str(tmp_path / "killed"))
        assert (killed.code, "the run was killed, or still goes on" in killed.out) == (130, True)
        with (out / run_files.REQUESTS).open("ab") as file:
            file.write(b'{"phase":"c=2","ind')  # what a machine that lost power leaves behind
        result = await resume(out)
        assert set(server.cancelled) >= {"job-7", "job-8"}
    assert result.phase["counted"] == result.phase["ok"] == 12
    assert [job.index for job in result.measured] == list(range(12))
    notes = " ".join(result.report["notes"])
    assert "2 of 2 jobs that the earlier session left behind were cancelled" in notes
    assert result.recorded.orphans == []  # the warm-up that was sent again has not made orphans of the first one's jobs
    assert "1 unreadable line was passed over" in notes


@pytest.mark.parametrize(
    "words", [["-c", "1", "2", "--runs", "8"], ["--rate", "40", "--duration", "500ms", "--warmup-requests", "0"]]
)
@pytest.mark.parametrize("keep", [0, 1, 7, 13])
async def test_resume_equals_an_uninterrupted_run(
    load_test: LoadTest, resume: Resume, words: list[str], keep: int
) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.01))) as server:
        whole = await load_test(server.url, *words)
        cut = await load_test(server.url, *words)
        for name in (run_files.REQUESTS, run_files.EVENTS):
            path = cut.directory / name
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:keep]))
        resumed = await resume(cut.directory)

    def done(result: Result) -> list[tuple[str, int]]:
        return sorted((job.phase, job.index) for job in result.recorded.jobs if job.role == "measured" and job.ok)

    assert done(resumed) == done(whole)
    assert [phase["counted"] for phase in resumed.report["phases"]] == [
        phase["counted"] for phase in whole.report["phases"]
    ]
    assert resumed.recorded.plan["plan"] == whole.recorded.plan["plan"]


async def test_resuming_a_finished_run_sends_nothing(load_test: LoadTest, resume: Resume) -> None:
    async with scripted() as server:
        first = await load_test(server.url, "-c", "1", "--runs", "5")
        sent = len(server.submitted)
        again = await resume(first.directory)
        assert len(server.submitted) == sent
    assert again.phase["counted"] == 5


async def test_a_record_is_on_disk_before_the_next_job_is_sent(load_test: LoadTest) -> None:
    seen: list[tuple[int, int]] = []
    where: list[Path] = []

    def job(number: int) -> JobScript:
        lines = where[0].read_bytes().count(b"\n") if where and where[0].exists() else 0
        seen.append((number, lines))
        return JobScript()

    async with scripted(Script(job=job)) as server:
        first = await load_test(server.url, "-c", "1", "--runs", "1", "--warmup-requests", "0")
        where.append(first.directory.parent / "run2" / run_files.REQUESTS)
        seen.clear()
        await load_test(server.url, "-c", "1", "--runs", "10", "--warmup-requests", "0")
    assert [lines for _, lines in seen] == list(range(10))


def test_a_feed_gives_out_each_measured_index_once_and_skips_those_done() -> None:
    phase = Phase("p", "closed", "closed", concurrency=2, requests=6, warmup_requests=1)
    feed = Feed(phase, already=frozenset({0, 3}))
    given = []
    while (due := feed.next(0.0)) is not None:
        given.append(due)
        feed.done(due[0], 1.0)
    assert given == [("warmup", 0), ("measured", 1), ("measured", 2), ("measured", 4), ("measured", 5)]
