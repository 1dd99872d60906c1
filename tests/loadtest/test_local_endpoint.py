"""Against the local endpoint: real worker processes, RunPod's API, faults on purpose."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmpod.endpoint import Fault, Faults, LocalEndpoint, Options
from llmpod.loadtest.model.failures import ERROR_CLASSES
from tests.loadtest.conftest import Result

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]
SLEEPER = Path(__file__).parent / "sleeper.py"


@asynccontextmanager
async def endpoint(
    *, workers: int = 1, env: dict[str, str] | None = None, **changes: Any
) -> AsyncIterator[LocalEndpoint]:
    settings: dict[str, Any] = {
        "port": 0,
        "command": [sys.executable, "-u", str(SLEEPER)],
        "workers_min": workers,
        "workers_max": workers,
        "ping_interval_ms": 1000,
        "take_hold_s": 2,
        "stop_hold_s": 2,
        "scale_period_s": 0.05,
        "grace_s": 2,
        "rate_limits": False,
        "journal": "",
        "console": False,
        **changes,
    }
    options = Options(**settings)
    options = options.model_copy(update={"env": options.env | (env or {})})
    async with LocalEndpoint(options) as one:
        await asyncio.wait_for(one.ready(workers=workers), 60)
        yield one


def template(folder: Path, **fields: Any) -> str:
    path = folder / "payload.json"
    path.write_text(json.dumps({"input": {"prompt": "{{prompt}}", **fields}}))
    return str(path)


async def test_every_mode_measures_the_local_endpoint(load_test: LoadTest, tmp_path: Path) -> None:
    slept = template(tmp_path, sleep_ms=120)
    results = {}
    async with endpoint(env={"CONCURRENCY": "4"}) as one:
        words = ("-c", "2", "--runs", "5", "--payload-template", slept, "--allow-worker-change")
        both = (load_test(one.url, "--mode", mode, *words) for mode in ("runsync", "run"))  # the same machine for both
        results["runsync"], results["run"] = await asyncio.gather(*both)
    async with endpoint(env={"CONCURRENCY": "4", "STREAM": "1"}) as one:
        for mode in ("stream", "openai"):
            results[mode] = await load_test(one.url, "--mode", mode, "-c", "2", "--runs", "5", "--allow-worker-change")
    for mode, result in results.items():
        assert (result.phase["ok"], result.phase["failed"]) == (5, 0), (mode, result.phase["failures"])
        assert result.phase["health"] is not None
    for mode in ("runsync", "run", "stream"):
        assert {job.worker_id is not None for job in results[mode].measured} == {True}
        assert all(job.delay_ms is not None and job.exec_ms is not None for job in results[mode].measured)
    for mode in ("runsync", "run"):
        assert results[mode].p("exec", 50) == pytest.approx(170, abs=80)  # the SDK looks for jobs every 100 ms
        assert results[mode].p("total", 50) >= results[mode].p("exec", 50)
        assert {job.output_tokens for job in results[mode].measured} == {20}
    for mode in ("stream", "openai"):
        assert results[mode].p("ttft", 50) < results[mode].p("total", 50)
        assert {job.output_tokens for job in results[mode].measured} == {3}
        assert {job.finish_reason for job in results[mode].measured} == {"stop"}
    assert abs(results["run"].p("total", 50) - results["runsync"].p("total", 50)) < 60


async def test_killed_workers_and_lost_answers_are_told_apart_from_success(load_test: LoadTest, tmp_path: Path) -> None:
    slept = template(tmp_path, sleep_ms=150)
    faults = Faults(faults=[Fault(operation="job-done", outcome=503, probability=0.1)], post_latency_ms=30, seed=5)
    async with endpoint(workers=2, env={"CONCURRENCY": "2"}, faults=faults) as one:

        async def kill_one() -> None:
            await asyncio.sleep(1.0)
            ids = await one.ready(workers=1)
            one.kill_worker(ids[0])

        killing = asyncio.create_task(kill_one())
        result = await load_test(
            one.url, "--mode", "run", "-c", "4", "--runs", "24", "--payload-template", slept,
            "--timeout", "12s", "--slo", "success_rate>=50%",
            "--allow-worker-change",
        )  # fmt: skip
        await killing
    assert result.phase["counted"] == 24
    assert result.phase["ok"] >= 18
    assert {job.error_class for job in result.measured if not job.ok} <= set(ERROR_CLASSES)
    assert (
        any(job.platform_retries for job in result.recorded.jobs)
        or len({job.worker_id for job in result.recorded.jobs}) >= 3
    )
    assert result.recorded.orphans == []
    assert result.code in (0, 5)


async def test_the_limits_kept_on_this_side_keep_the_endpoints_own_from_tripping(
    load_test: LoadTest, tmp_path: Path
) -> None:
    quick = template(tmp_path, sleep_ms=1)
    async with endpoint(env={"CONCURRENCY": "64"}, rate_limits=True) as one:
        # /run allows 1000 in 10 s: 3 s at 300/s is 900, and the polls come on top.
        kept = await load_test(
            one.url,
            "--mode",
            "run",
            "--rate",
            "150",
            "--duration",
            "2s",
            "--payload-template",
            quick,
            "--allow-worker-change",
            "--warmup-requests",
            "0",
        )
    classes = {job.error_class for job in kept.recorded.jobs}
    assert "submit_429" not in classes
    assert "poll_failed" not in classes


async def test_a_start_from_nothing_is_cold_whether_first_or_after_idling_and_the_rest_is_warm(
    load_test: LoadTest, tmp_path: Path
) -> None:
    """No worker to begin with, 10 s and more until one has started, and none kept for longer than 7 s without a job."""
    due = tmp_path / "due.txt"
    due.write_text("0\n17\n17.7\n18.4\n30\n")
    async with endpoint(
        workers=0, workers_max=1, faults=Faults(cold_start_s=10), idle_timeout_s=7, scale_period_s=0.2
    ) as one:
        result = await load_test(
            one.url, "--replay", str(due), "--warmup-requests", "0", "--slo", "total.p95<30s",
            "--payload-template", template(tmp_path, sleep_ms=100), "--allow-worker-change",
        )  # fmt: skip
    delays = [job.delay_ms for job in result.measured]
    assert [delay >= 10_000 for delay in delays] == [True, False, False, False, True], delays
    assert {job.worker_id for job in result.measured[:4]} != {result.measured[4].worker_id}
    classes = {one["name"]: one for one in result.phase["classes"]}
    assert {name: one["n"] for name, one in classes.items()} == {"cold": 2, "wake": 0, "warm": 3}
    assert classes["cold"]["delay_p50_ms"] >= 10_000
    assert result.phase["without_cold"]["n"] == 3
    assert result.p("total", 95) >= 10_000 > result.phase["without_cold"]["max_ms"]
    assert "2 cold starts" in result.phase["why"]
    assert result.code == 0
