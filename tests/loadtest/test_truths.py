"""Times that are known beforehand, and what the load tester says about them."""

from collections.abc import Awaitable, Callable

import pytest

from tests.loadtest.conftest import Result
from tests.loadtest.scripted import JobScript, Script, scripted, sse_answer

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]


@pytest.mark.parametrize("gap", ["250ms", "1s", "5s"])
async def test_a_job_of_3450_ms_polled_at_a_fixed_gap_is_reported_within_50_ms(load_test: LoadTest, gap: str) -> None:
    script = Script(job=lambda _: JobScript(delay_s=0.65, exec_s=2.8), long_poll=False)
    async with scripted(script) as server:
        result = await load_test(
            server.url, "--mode", "run", "--poll-interval", gap, "-c", "3", "--runs", "3", "--warmup-requests", "0"
        )
    assert result.phase["ok"] == 3
    for job in result.measured:
        assert job.total_ms == pytest.approx(3450, abs=50)
        assert job.total_lower_ms <= job.total_ms <= job.total_upper_ms
    seen_late_ms = {"250ms": 50, "1s": 550, "5s": 1550}[gap]
    assert result.report["phases"][0]["poll_overshoot_ms"] >= seen_late_ms - 45


async def test_long_polling_needs_no_correction_and_two_requests_per_job(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(delay_s=0.2, exec_s=0.8))) as server:
        result = await load_test(server.url, "--mode", "run", "-c", "4", "--runs", "8", "--warmup-requests", "0")
        polls = sum(1 for op, _ in server.calls if op in ("status", "status-sync"))
    # The quickest: a busy machine delays some, and none can be answered sooner than it is done.
    assert min(job.total_ms for job in result.measured) == pytest.approx(1000, abs=50)
    assert {job.total_ms == job.total_upper_ms for job in result.measured} == {True}
    assert polls <= 8 + 4 + 4  # one per job, fillers included


async def test_without_long_polling_the_fall_back_is_found_once_and_stays_near_the_truth(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(delay_s=0.2, exec_s=0.8), long_poll=False)) as server:
        result = await load_test(server.url, "--mode", "run", "-c", "2", "--runs", "8")
    assert result.p("total", 50) == pytest.approx(1000, abs=50)
    assert sum(1 for line in result.recorded.events if line["event"] == "long_poll_unavailable") <= 2


async def test_a_stall_of_10_s_shows_in_the_scheduled_p99_and_not_in_the_service_p50(load_test: LoadTest) -> None:
    script = Script(job=lambda _: JobScript(exec_s=0.02), stall=(2.0, 12.0))
    async with scripted(script) as server:
        result = await load_test(
            server.url, "--request-rate", "20", "--arrival", "constant", "--duration", "15s",
            "--max-concurrency", "4", "--allow-worker-change",
        )  # fmt: skip
    assert result.p("scheduled", 99) > 9000
    assert result.p("total", 50) < 100
    # The cap let four requests meet the stall; service latency alone would have hidden the other two hundred.
    assert sum(1 for job in result.measured if job.total_ms > 5000) <= 5
    assert sum(1 for job in result.measured if job.scheduled_total_ms > 5000) > 80
    assert result.code == 5
    assert any("after they were due" in doubt["text"] for doubt in result.phase["doubts"])


async def test_an_uncapped_open_loop_keeps_its_schedule_through_a_stall(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.02), stall=(1.0, 3.0))) as server:
        result = await load_test(server.url, "--rate", "20", "--arrival", "constant", "--duration", "5s")
    assert result.p("schedule_delay", 50) < 300
    assert result.phase["achieved_per_s"] == pytest.approx(20, rel=0.03)
    assert result.p("total", 99) > 1500


async def test_a_closed_loop_has_no_scheduled_latency(load_test: LoadTest) -> None:
    async with scripted() as server:
        result = await load_test(server.url, "-c", "2", "--runs", "10")
    assert "scheduled" not in result.phase["rows"]
    assert all(job.scheduled_ms is None and job.scheduled_total_ms is None for job in result.recorded.jobs)


@pytest.mark.parametrize(("clients", "workers"), [(1, 1), (4, 1), (4, 2)])
async def test_a_saturated_queue_follows_littles_law(load_test: LoadTest, clients: int, workers: int) -> None:
    script = Script(job=lambda _: JobScript(exec_s=0.28), workers=workers, dispatch_s=0.05, after_s=0.015)
    async with scripted(script) as server:
        result = await load_test(server.url, "-c", str(clients), "--runs", "16")
    cycle_ms = 345
    assert result.p("total", 50) == pytest.approx(max(330, clients * cycle_ms / workers), rel=0.06)
    assert result.p("exec", 50) == pytest.approx(280, abs=1)
    assert result.p("delay", 50) == pytest.approx(result.p("total", 50) - 280, abs=40)
    law = result.phase["little"]
    assert law["holds"]
    assert law["ratio"] == pytest.approx(1, abs=0.1)
    if clients > workers:
        assert "queue" in result.phase["why"].lower()
    else:
        assert "Execution" in result.phase["why"]


async def test_the_mean_jobs_parts_add_up_to_its_total(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(delay_s=0.1, exec_s=0.2))) as server:
        result = await load_test(server.url, "-c", "2", "--runs", "10")
    mean = result.phase["shares"][0]
    assert sum(mean[part] for part in ("wait_ms", "delay_ms", "exec_ms", "overhead_ms")) == pytest.approx(
        result.phase["rows"]["total"]["mean_ms"], rel=0.01
    )


async def test_first_token_and_time_per_token_of_an_sse_stream_are_those_of_the_server(load_test: LoadTest) -> None:
    script = Script(sse=lambda _: sse_answer(["w "] * 21, gap_s=0.03, first_s=0.3))
    async with scripted(script) as server:
        result = await load_test(server.url, "--mode", "openai", "-c", "2", "--runs", "4")
    assert result.p("ttft", 50) == pytest.approx(300, abs=40)
    assert result.p("tpot", 50) == pytest.approx(30, abs=5)
    assert result.p("total", 50) == pytest.approx(900, abs=60)
    assert result.measured[0].output_tokens == 21
    assert not result.measured[0].tokens_estimated
    assert "delay" not in result.phase["rows"]
    assert "not measurable on this route" in result.phase["why"]


async def test_an_sse_stream_cut_into_single_bytes_gives_the_same_record(load_test: LoadTest) -> None:
    whole = sse_answer(["grüße ", "🚀 "], gap_s=0.0)
    cut = [(at, piece[n : n + 1]) for at, piece in whole for n in range(len(piece))]
    async with scripted(Script(sse=lambda number: cut if number else whole)) as server:
        result = await load_test(server.url, "--mode", "openai", "-c", "1", "--runs", "2", "--warmup-requests", "0")
    a, b = result.measured
    assert (
        (a.ok, a.chunks, a.output_tokens, a.finish_reason)
        == (b.ok, b.chunks, b.output_tokens, b.finish_reason)
        == (True, 2, 2, "stop")
    )


async def test_the_first_chunk_of_a_runpod_stream_lies_between_its_two_bounds(load_test: LoadTest) -> None:
    chunks = [(0.2 + 0.1 * n, {"choices": [{"index": 0, "text": "w "}]}) for n in range(5)]
    last = (0.6, {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": {"input": 3, "output": 5}})
    script = Script(job=lambda _: JobScript(delay_s=0.1, exec_s=0.7, chunks=[*chunks, last]))
    async with scripted(script) as server:
        result = await load_test(server.url, "--mode", "stream", "-c", "1", "--runs", "3", "--warmup-requests", "0")
    for job in result.measured:
        truth = job.sent_ms + 300
        assert job.first_chunk_after_ms - 10 <= truth <= job.first_chunk_ms + 10
        assert job.total_ms == pytest.approx(job.last_token_ms - job.sent_ms, abs=0.01)  # it ends with the last chunk
        assert (job.output_tokens, job.finish_reason, job.exec_ms) == (5, "stop", 700)
    # A busy machine may delay a job, but not all three.
    assert min(job.first_chunk_ms - job.first_chunk_after_ms for job in result.measured) < 150
    assert min(job.total_ms for job in result.measured) == pytest.approx(700, abs=110)


async def test_every_state_is_recorded_with_the_time_it_was_seen(load_test: LoadTest) -> None:
    script = Script(job=lambda _: JobScript(delay_s=0.3, exec_s=0.4), long_poll=False)
    async with scripted(script) as server:
        result = await load_test(
            server.url, "--mode", "run", "--poll-interval", "50ms", "-c", "1", "--runs", "1", "--warmup-requests", "0"
        )
    job = result.measured[0]
    states = [state for state, _ in job.states]
    assert states == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    seen = dict(job.states)
    assert 295 <= seen["IN_PROGRESS"] - job.sent_ms < seen["COMPLETED"] - job.sent_ms
    assert seen["COMPLETED"] - job.sent_ms >= 695
    assert job.total_ms == pytest.approx(700, abs=50)
