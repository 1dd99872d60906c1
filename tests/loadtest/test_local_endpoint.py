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
from llmpod.loadtest.capacity import to_jobs
from llmpod.loadtest.classify import ERROR_CLASSES
from llmpod.loadtest.fit import fit
from llmpod.loadtest.records import Job
from llmpod.loadtest.simulate import Fixed, Simulation
from llmpod.loadtest.stats import nearest_rank
from tests.loadtest.conftest import Result

LoadTest = Callable[..., Awaitable[Result]]
SLEEPER, PUNCTUAL = (Path(__file__).parent / name for name in ("sleeper.py", "punctual.py"))


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
        for mode in ("runsync", "run"):
            results[mode] = await load_test(
                one.url, "--mode", mode, "-c", "2", "--runs", "5", "--payload-template", slept, "--allow-worker-change"
            )
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


async def test_capacity_agrees_with_the_local_endpoint_on_work_it_was_not_fitted_to(
    load_test: LoadTest, tmp_path: Path
) -> None:
    """Fitted: one worker, one and three clients, 200 ms jobs. Forecast: Poisson arrivals, and five clients, on two
    workers."""
    slept = ["--payload-template", template(tmp_path, sleep_ms=200), "--allow-worker-change"]
    punctual = [sys.executable, "-u", str(PUNCTUAL)]
    async with endpoint(workers=1, command=punctual) as one:
        fitted = await load_test(one.url, "-c", "1", "3", "--runs", "15", *slept)
    found = fit(fitted.recorded.jobs)
    assert found.service.slots == 1
    async with endpoint(workers=2, command=punctual) as one:
        poisson = await load_test(one.url, "--rate", "5", "--duration", "12s", "--seed", "2", *slept)
        closed = await load_test(one.url, "-c", "5", "--runs", "40", *slept)
    first = poisson.measured[0].scheduled_ms
    times = [(job.scheduled_ms - first) / 1000 for job in poisson.measured]
    opened = to_jobs(Simulation(found.service, Fixed((0.0, 0.0)), 1).open(times))
    looped = to_jobs(Simulation(found.service, Fixed((0.0, 0.0)), 1).closed(5, 60), skip_s=1.0)

    def forecast(jobs: list[Job], p: float) -> float:
        return nearest_rank(sorted(job.total_ms or 0.0 for job in jobs), p)

    said = {
        "poisson p50": (forecast(opened, 50), poisson.p("total", 50)),
        "poisson p90": (forecast(opened, 90), poisson.p("total", 90)),
        "closed p50": (forecast(looped, 50), closed.p("total", 50)),
    }
    assert poisson.p("total", 90) > 1.3 * poisson.p("total", 50)  # there was a queue to forecast
    for name, (simulated, measured) in said.items():
        assert simulated == pytest.approx(measured, rel=0.10), (name, said, found.service)
