"""What counts as success, and what each failure is called."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from llmpod.loadtest.model.failures import ERROR_CLASSES, error_text
from llmpod.loadtest.run.outcomes import judge
from llmpod.loadtest.run.output import read_output
from tests.loadtest.conftest import Result
from tests.loadtest.scripted import OUTPUT, JobScript, Script, scripted, sse_answer

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]

ENDS: list[tuple[JobScript, str]] = [
    (
        JobScript(status="FAILED", output=None, error='{"error_type": "ValueError", "error_message": "too long"}'),
        "job_failed",
    ),
    (JobScript(status="TIMED_OUT", output=None), "job_timed_out"),
    (JobScript(status="CANCELLED", output=None), "job_cancelled"),
    (JobScript(output={"error": {"message": "engine dead", "type": "EngineError"}}), "output_error"),
    (JobScript(output=[{"choices": []}, {"error": "late"}]), "output_error"),
    (JobScript(output=None), "empty_output"),
    (JobScript(output={}), "empty_output"),
    (JobScript(output=""), "empty_output"),
]


@pytest.mark.parametrize("mode", ["runsync", "run"])
@pytest.mark.parametrize(
    ("job", "error_class"), ENDS, ids=[f"{name}-{number}" for number, (_, name) in enumerate(ENDS)]
)
async def test_http_200_is_no_success(load_test: LoadTest, mode: str, job: JobScript, error_class: str) -> None:
    async with scripted(Script(job=lambda _: job)) as server:
        result = await load_test(server.url, "--mode", mode, "-c", "1", "--runs", "2", "--warmup-requests", "0")
    assert [one.error_class for one in result.measured] == [error_class] * 2
    assert all(one.http_status == 200 and not one.ok for one in result.measured)
    assert result.phase["failures"][0]["error_class"] == error_class
    assert result.code == 1  # nothing succeeded


async def test_a_wait_that_expires_is_followed_and_named(load_test: LoadTest) -> None:
    script = Script(job=lambda number: JobScript(exec_s=0.6 if number == 0 else 0.05), runsync_wait_s=0.3)
    async with scripted(script) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "3", "--warmup-requests", "0")
    first, *rest = result.measured
    assert first.ok
    assert first.warnings == ["wait_expired"]
    assert first.total_ms == pytest.approx(600, abs=50)
    assert all(not job.warnings for job in rest)
    assert result.phase["warnings"] == {"wait_expired": 1}


async def test_a_wait_that_expires_without_a_result_is_its_own_failure_and_the_job_is_cancelled(
    load_test: LoadTest,
) -> None:
    script = Script(job=lambda _: JobScript(exec_s=60), runsync_wait_s=0.2)
    async with scripted(script) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "1", "--warmup-requests", "0", "--timeout", "1s")
        assert server.cancelled == ["job-0"]
    # It is what it is in every mode: no result within --timeout. That the wait ended before is told beside it.
    assert (result.measured[0].error_class, result.measured[0].warnings) == ("client_timeout", ["wait_expired"])


async def test_a_job_that_outlasts_its_timeout_is_cancelled(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=60))) as server:
        result = await load_test(
            server.url, "--mode", "run", "-c", "2", "--runs", "2", "--warmup-requests", "0", "--timeout", "700ms"
        )
        assert {"job-0", "job-1"} <= set(server.cancelled)
    assert {job.error_class for job in result.measured} == {"client_timeout"}
    assert result.measured[0].total_ms == pytest.approx(700, abs=150)


async def test_a_result_that_is_no_longer_kept_is_not_a_missing_endpoint(load_test: LoadTest) -> None:
    script = Script(job=lambda _: JobScript(exec_s=0.05), keep_s=0.05, long_poll=False)
    async with scripted(script) as server:
        result = await load_test(
            server.url, "--mode", "run", "--poll-interval", "400ms", "-c", "1", "--runs", "2", "--warmup-requests", "0"
        )
    assert [job.error_class for job in result.measured] == ["result_expired"] * 2


async def test_platform_retries_and_times_that_do_not_fit_are_warned_about(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1, retries=2))) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "1", "--warmup-requests", "0")
        assert result.measured[0].platform_retries == 2
        assert result.phase["warnings"] == {"retried": 1}


async def test_polls_may_fail_a_few_times_without_failing_the_job(load_test: LoadTest) -> None:
    script = Script(
        job=lambda _: JobScript(exec_s=0.3),
        long_poll=False,
        refuse=lambda op, n: 503 if op == "status" and n in (1, 2) else None,
    )
    async with scripted(script) as server:
        result = await load_test(
            server.url, "--mode", "run", "--poll-interval", "100ms", "-c", "1", "--runs", "1", "--warmup-requests", "0"
        )
    assert result.measured[0].ok
    assert result.measured[0].total_ms == pytest.approx(300, abs=60)


async def test_a_submit_is_not_retried_unless_asked_and_then_says_how_often(load_test: LoadTest) -> None:
    def refuse(op: str, number: int) -> Any:
        return (429, '{"error": "slow down"}', {"Retry-After": "0.2"}) if op == "runsync" and number == 0 else None

    async with scripted(Script(refuse=refuse)) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "1", "--warmup-requests", "0")
    assert (result.measured[0].error_class, result.measured[0].attempts) == ("submit_429", 1)
    async with scripted(Script(refuse=refuse)) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "1", "--warmup-requests", "0", "--retries", "2")
    job = result.measured[0]
    assert (job.ok, job.attempts) == (True, 2)
    assert job.total_ms >= 200  # the wait for the retry is the caller's wait


@pytest.mark.parametrize(
    ("pieces", "error_class"),
    [
        (sse_answer(["half "], done=False), "stream_broken"),
        (
            [(0.0, b'data: {"error": {"message": "engine dead", "code": 500}}\n\n'), (0.0, b"data: [DONE]\n\n")],
            "output_error",
        ),
        ([(0.0, b"data: not json\n\n"), (0.0, b"data: [DONE]\n\n")], "output_error"),
        ([(0.0, b"data: [DONE]\n\n")], "empty_output"),
    ],
)
async def test_a_stream_that_ends_badly_is_no_success(
    load_test: LoadTest, pieces: list[tuple[float, bytes]], error_class: str
) -> None:
    async with scripted(Script(sse=lambda _: pieces)) as server:
        result = await load_test(server.url, "--mode", "openai", "-c", "1", "--runs", "1", "--warmup-requests", "0")
    assert result.measured[0].error_class == error_class


async def test_an_openai_error_behind_http_200_is_a_failure_and_a_whole_answer_has_no_first_token(
    load_test: LoadTest,
) -> None:
    async with scripted(Script(openai_json={"object": "error", "message": "no such model", "code": 404})) as server:
        result = await load_test(server.url, "--mode", "openai", "-c", "1", "--runs", "1", "--warmup-requests", "0")
    assert result.measured[0].error_class == "output_error"
    whole = {
        "choices": [{"message": {"content": "hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    async with scripted(Script(openai_json=whole)) as server:
        result = await load_test(
            server.url, "--mode", "openai", "--no-stream", "-c", "1", "--runs", "1", "--warmup-requests", "0"
        )
    job = result.measured[0]
    assert (job.ok, job.ttft_ms, job.output_tokens, job.warnings) == (True, None, 2, ["truncated"])


async def test_a_worker_that_does_not_stream_has_no_first_token_and_has_not_failed(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05))) as server:
        result = await load_test(server.url, "--mode", "stream", "-c", "1", "--runs", "3")
    assert (result.phase["ok"], result.phase["failed"]) == (3, 0)
    assert result.phase["warnings"] == {"not_streamed": 3}
    assert [(job.ttft_ms, job.output_tokens) for job in result.measured] == [(None, 50)] * 3


async def test_failures_make_the_failure_aware_percentiles_infinite(load_test: LoadTest) -> None:
    script = Script(job=lambda n: JobScript(status="FAILED", output=None, error="boom") if n % 10 == 9 else JobScript())
    async with scripted(script) as server:
        result = await load_test(
            server.url,
            "-c",
            "1",
            "--runs",
            "40",
            "--warmup-requests",
            "0",
            "--slo",
            "total.p95<2s",
            "--slo",
            "total.p50<2s",
        )
    row = result.phase["rows"]["total"]
    assert row["adjusted"]["p95"] == "inf"
    assert row["adjusted"]["p50"] < 100
    assert result.p("total", 95) < 200
    assert [verdict["passed"] for verdict in result.phase["verdicts"]] == [False, True]
    assert result.code in (3, 5)


def test_every_end_has_a_class_that_the_report_can_explain() -> None:
    assert judge(read_output(OUTPUT)).outcome == "answered"
    for status, output, error in [
        ("FAILED", None, None),
        ("COMPLETED", None, None),
        ("COMPLETED", {"error": "x"}, None),
        ("ODD", 1, None),
    ]:
        verdict = judge(read_output(output), status, error)
        assert verdict.error_class in ERROR_CLASSES
        assert verdict.error


def test_zero_and_false_are_outputs() -> None:
    assert read_output(0).content
    assert read_output(False).content
    assert not read_output([]).content
    assert not read_output([{}, ""]).content


def test_an_error_is_one_line_with_its_type() -> None:
    assert error_text('{"error_type": "E", "error_message": "line one\\nline two"}') == "E: line one line two"
    assert error_text({"code": 404, "message": "gone"}) == "404: gone"
    assert error_text("x" * 1000) == "x" * 300
