"""What `capacity` forecasts from one endpoint's measured runs, beside what clients of other endpoints then measure.

The workers are the real SDK's and sleep half a second per job. Its loop looks for the next job once a second while it
is busy, so a worker does one job per second: against that second the noise of a machine is small, but not that of other
tests, so this one runs alone. All endpoints run beside each other, which is possible because nobody computes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from llmpod.endpoint import Faults
from llmpod.loadtest.capacity.capacity import to_jobs
from llmpod.loadtest.capacity.fit import fit, on_one_axis
from llmpod.loadtest.capacity.simulate import Autoscaler, Fixed, Simulation
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.stats import nearest_rank
from tests.loadtest.conftest import Result
from tests.loadtest.test_local_endpoint import endpoint, template

pytestmark = [pytest.mark.process, pytest.mark.alone]

LoadTest = Callable[..., Awaitable[Result]]
COLD_START_S = 10.0
# A client that woke up so late measured the machine and not the endpoint: the run is done again, whatever it says.
LATE_MS, TRIES = 150.0, 3


def total(jobs: Sequence[Job], p: float) -> float:
    return nearest_rank(sorted(job.total_ms or 0.0 for job in jobs), p)


def per_s(jobs: Sequence[Job]) -> float:
    """Jobs done per second between the first and the last end."""
    ends = sorted(job.done_ms or 0.0 for job in jobs)
    return (len(ends) - 1) / (ends[-1] - ends[0]) * 1000


async def test_capacity_forecasts_what_clients_measure_on_work_it_was_not_fitted_to(
    load_test: LoadTest, tmp_path: Path
) -> None:
    slept = ["--payload-template", template(tmp_path, sleep_ms=500), "--allow-worker-change"]

    async def undisturbed(run: Callable[[], Awaitable[list[Result]]]) -> list[Result]:
        for _ in range(TRIES):
            results = await run()
            if all(result.phase["client"]["loop_lag_max_ms"] < LATE_MS for result in results):
                break
        return results

    async def known() -> list[Result]:
        """One worker that starts from nothing; then a lone client, three of them, and jobs that find it rested."""
        cold = Faults(cold_start_s=COLD_START_S)
        async with endpoint(workers=0, workers_max=1, idle_timeout_s=60, faults=cold) as one:
            clients = await load_test(one.url, "-c", "1", "3", "--runs", "7", *slept)
            rested = await load_test(one.url, "--rate", "0.4", "--arrival", "constant", "--runs", "6", *slept)
        return [clients, rested]

    async def looped() -> list[Result]:
        async with endpoint(workers=2) as one:
            return [await load_test(one.url, "-c", "6", "--runs", "24", *slept)]

    async def arriving() -> list[Result]:
        async with endpoint(workers=2) as one:
            return [await load_test(one.url, "--rate", "1.3", "--runs", "50", "--seed", "3", *slept)]

    async def growing() -> list[Result]:
        """One worker, four clients; the second worker comes when it has started."""
        scaling = {"workers_max": 2, "scaler_type": "REQUEST_COUNT", "scaler_value": 2}
        async with endpoint(workers=1, faults=Faults(cold_start_s=COLD_START_S), **scaling) as one:
            return [await load_test(one.url, "-c", "4", "--runs", "44", "--warmup-requests", "0", *slept)]

    fitted, *measured_runs = await asyncio.gather(*map(undisturbed, (known, looped, arriving, growing)))
    found = fit(on_one_axis([result.recorded.jobs for result in fitted]))
    six, poisson, four = (one.measured for (one,) in measured_runs)
    assert found.service.slots == 1
    assert found.cold_start_s is not None

    sent = sorted(job.sent_ms or 0.0 for job in poisson)
    two, scaler = (
        Fixed((0.0, 0.0)),
        Autoscaler("REQUEST_COUNT", 2, workers_min=1, workers_max=2, cold_start_s=found.cold_start_s),
    )
    forecast_six = to_jobs(Simulation(found.service, two).closed(6, 60), skip_s=5)[: len(six)]
    forecast_poisson = to_jobs(Simulation(found.service, two).open([(at - sent[0]) / 1000 for at in sent]))
    forecast_four = to_jobs(Simulation(found.service, scaler).closed(4, 80))[: len(four)]
    pairs = {
        "six clients on two workers": (forecast_six, six),
        "Poisson arrivals on two workers": (forecast_poisson, poisson),
        "four clients while a second worker starts": (forecast_four, four),
    }
    said = {
        f"{name}: {figure}": (of(forecast), of(measured))
        for name, (forecast, measured) in pairs.items()
        for figure, of in (
            ("total p50", lambda jobs: total(jobs, 50)),
            ("total p95", lambda jobs: total(jobs, 95)),
            ("throughput", per_s),
        )
    }
    assert total(poisson, 95) > 1.5 * total(poisson, 50)  # there was a queue to forecast
    assert total(four, 95) > 1.5 * total(four, 50)  # and a start
    for name, (forecast, measured) in said.items():
        assert forecast == pytest.approx(measured, rel=0.10), (name, said, found)
