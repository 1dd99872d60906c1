"""The endpoint that was measured, reproduced: the old CSVs' corrected story, the simulation, and capacity."""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llmpod.loadtest.analysis.slo import parse as parse_slo
from llmpod.loadtest.capacity.capacity import Forecast, to_jobs
from llmpod.loadtest.capacity.fit import fit, on_one_axis
from llmpod.loadtest.capacity.simulate import Autoscaler, Fixed, Outcome, Service, Simulation, Withheld
from llmpod.loadtest.cli.compare import compare
from llmpod.loadtest.model.arrivals import Arrivals, steady
from llmpod.loadtest.stats import nearest_rank, quantiles
from tests.loadtest.conftest import DATA, ROOT, Result, command, door
from tests.loadtest.scripted import JobScript, Script, scripted
from tools import import_old_csv

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]

# file, concurrencies, then per phase: (steady p50 ms, workers, jobs/min) as published for these runs, within what
# rounding allows.
GOLDEN: list[tuple[str, list[int], list[tuple[float, int, float]]]] = [
    ("044528", [1, 4, 8], [(3467, 1, 17.3), (13874, 1, 17.3), (0, 0, 0)]),
    ("061713", [1, 4], [(3445, 1, 17.4), (13872, 1, 17.3)]),
    ("063208", [1], [(3381, 1, 17.4)]),
    ("071309", [1], [(3567, 1, 0)]),
    ("071544", [4], [(13741, 1, 17.4)]),
    ("071717", [4], [(13809, 1, 17.4)]),
    ("071943", [4], [(13835, 1, 17.3)]),
    ("072123", [4], [(13866, 1, 17.3)]),
    ("072325", [1], [(3466, 1, 17.3)]),
    ("072446", [4], [(13814, 1, 17.4)]),
    ("072902", [4], [(6922, 2, 34.6)]),
    ("073006", [4], [(6897, 2, 34.9)]),
    ("073202", [4], [(4523, 3, 52.4)]),
    ("073304", [2, 3], [(3457, 2, 35.1), (3457, 3, 52.1)]),
    ("114117", [2], [(6485, 1, 18.7)]),
    ("114219", [2], [(3282, 2, 0)]),
    ("114351", [2], [(3374, 2, 35.6)]),
]
CYCLE_MS = 3450.0


def old(stamp: str) -> Path:
    return next(DATA.glob(f"rp_results_20251010T{stamp}Z.csv"))


# -- the old CSVs --


@pytest.mark.parametrize(("stamp", "levels", "wanted"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_an_old_csv_tells_its_corrected_story(
    stamp: str, levels: list[int], wanted: list[tuple[float, int, float]]
) -> None:
    phases = import_old_csv.import_files([old(stamp)], levels)
    assert [phase.concurrency for phase in phases] == levels
    for phase, (p50_ms, workers, per_min) in zip(phases, wanted, strict=True):
        if not p50_ms:
            continue  # the phase in which a second worker joined: there is no steady state to compare
        assert phase.steady_p50_ms == pytest.approx(p50_ms, rel=0.03)
        found = phase.workers(CYCLE_MS)
        assert found is not None
        assert round(found) == workers
        if per_min:
            assert phase.throughput_per_min == pytest.approx(per_min, rel=0.03)


def test_every_old_file_is_covered() -> None:
    assert {path.name[20:26] for path in DATA.glob("*.csv")} == {row[0] for row in GOLDEN} | {"121412"}


def test_one_client_alone_gives_the_workers_cycle_of_3450_ms() -> None:
    phases = [phase for stamp, levels, _ in GOLDEN for phase in import_old_csv.import_files([old(stamp)], levels)]
    cycle = import_old_csv.cycle_ms(phases)
    assert cycle == pytest.approx(CYCLE_MS, rel=0.01)


def test_the_hidden_failure_is_found_a_90_s_wait_counted_as_success() -> None:
    (phase,) = import_old_csv.import_files([old("071309")], [1])
    assert [job.error_class for job in phase.jobs].count("wait_expired") == 1
    assert phase.jobs[0].total_ms == pytest.approx(90_470, abs=1)
    assert not phase.jobs[0].ok
    assert "wait that expired after 90 s" in import_old_csv.story([phase], None)[0]
    for stamp, levels, _ in GOLDEN:
        if stamp != "071309":
            assert all(job.ok for one in import_old_csv.import_files([old(stamp)], levels) for job in one.jobs)


def test_the_scaler_change_alone_changed_nothing_the_second_worker_did() -> None:
    before, after, two = (import_old_csv.import_files([old(stamp)], [4])[0] for stamp in ("071544", "072123", "072902"))
    assert before.steady_p50_ms is not None
    assert after.steady_p50_ms is not None
    assert two.steady_p50_ms is not None
    assert after.steady_p50_ms == pytest.approx(before.steady_p50_ms, rel=0.02)
    assert two.steady_p50_ms == pytest.approx(after.steady_p50_ms / 2, rel=0.02)


def test_the_soak_is_two_states_and_its_2000_jobs_are_worth_few() -> None:
    (soak,) = import_old_csv.import_files([old("121412")], [2])
    totals = [job.total_ms for job in soak.jobs if job.total_ms is not None]
    assert len(totals) == 2000
    assert nearest_rank(sorted(totals), 50) == pytest.approx(3449, abs=1)
    assert nearest_rank(sorted(totals), 95) == pytest.approx(6929, abs=1)
    for found in quantiles(totals, [50, 90, 95, 99]):
        assert (found.low, found.high) == (None, None)  # two states: no interval of the whole holds
        assert found.n_eff < 40
    (said,) = [line for line in import_old_csv.story([soak], CYCLE_MS) if "two states" in line]
    assert "of 69.6 min" in said
    minutes = float(said.split("two states: ")[1].split(" of")[0])
    assert minutes == pytest.approx(26.0, abs=1.0)


async def test_the_door_prints_the_corrected_story(tmp_path: Path) -> None:
    out = tmp_path / "old"
    words = [str(old("061713")), "--concurrency", "1", "4", "--out", str(out)]
    ended = command(*words, entry=import_old_csv.main)
    assert ended.code == 0
    assert re.search(r"= 4 x 3\.4\d s / (0\.9\d|1\.0\d): 1 worker;", ended.out)
    assert "17.4 jobs/min per worker" in ended.out
    again = command("report", str(out), "--slo", "total.p95<8s", "--format", "json")
    assert again.code == 3
    verdicts = {phase["phase"]["name"]: phase["verdicts"][0]["passed"] for phase in json.loads(again.out)["phases"]}
    assert any("17.4 jobs/min per worker" in note for note in json.loads(again.out)["notes"])
    assert verdicts == {"c=1": True, "c=4": False}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/no/such.csv", "-c", "1"], "cannot read"),
        ([str(DATA / "rp_results_20251010T063208Z.csv")], "--concurrency is needed"),
        ([str(DATA / "rp_results_20251010T063208Z.csv"), "-c", "1", "2", "3"], "check --concurrency"),
        ([str(ROOT / "README.md"), "-c", "1"], "it has no column"),
    ],
)
def test_a_wrong_import_is_one_line_and_exit_2(words: list[str], said: str, tmp_path: Path) -> None:
    ended = command(*words, "--out", str(tmp_path / "out"), entry=import_old_csv.main)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []


# -- the simulation --


def measured_worker() -> Service:
    draw = random.Random(1)
    return Service(tuple(max(2.5, draw.gauss(2.80, 0.04)) for _ in range(500)), 0.52, 0.65, 0.13)


def middle(outcome: Outcome, p: float = 50) -> tuple[float, float]:
    return (
        nearest_rank(sorted(job.total_s for job in outcome.jobs), p),
        nearest_rank(sorted(job.delay_s for job in outcome.jobs), p),
    )


@pytest.mark.parametrize(
    ("clients", "ready", "total_s", "delay_s"),
    [
        (1, (0.0,), 3.45, None),
        (4, (0.0,), 13.82, 10.898),
        (4, (0.0, 0.0), 6.907, 3.949),
        (4, (0.0, 0.0, 1.14), 4.517, None),  # the third worker's first answer came 1.14 s after the others'
        (2, (0.0, 0.0), 3.453, None),
        (3, (0.0, 0.0, 0.0), 3.457, None),
    ],
)
def test_the_simulation_reproduces_the_measured_endpoint(
    clients: int, ready: tuple[float, ...], total_s: float, delay_s: float | None
) -> None:
    total, delay = middle(Simulation(measured_worker(), Fixed(ready), 1).closed(clients, 30))
    assert total == pytest.approx(total_s, rel=0.03)
    if delay_s is not None:
        assert delay == pytest.approx(delay_s, rel=0.03)


def test_the_simulation_reproduces_every_steady_row() -> None:
    for stamp, levels, wanted in GOLDEN:
        if stamp.startswith("11"):
            continue  # another image with another cycle
        for level, (p50_ms, workers, _) in zip(levels, wanted, strict=True):
            if p50_ms and stamp not in ("073202", "071309"):
                total, _ = middle(Simulation(measured_worker(), Fixed((0.0,) * workers), 1).closed(level, 30))
                assert total * 1000 == pytest.approx(p50_ms, rel=0.03), (stamp, level)


def test_the_soak_becomes_bimodal_when_one_worker_is_withheld() -> None:
    spans = ((0.0, 8.6), (9.1, 17.5), (38.0, 38.3), (41.1, 41.6), (51.4, 59.6))
    withheld = tuple(Withheld(60 * start, 60 * end) for start, end in spans)
    outcome = Simulation(measured_worker(), Fixed((0.0, 0.0), withheld), 1).closed(2, 2000)
    totals = sorted(job.total_s for job in outcome.jobs)
    assert nearest_rank(totals, 50) == pytest.approx(3.449, rel=0.03)
    assert nearest_rank(totals, 95) == pytest.approx(6.929, rel=0.03)
    assert sum(totals) / len(totals) == pytest.approx(4.177, rel=0.03)
    slow = sum(total for total in totals if total > 5) / sum(totals)
    assert slow == pytest.approx(26.0 / 69.6, abs=0.03)
    assert outcome.jobs[-1].done_s / 60 == pytest.approx(69.6, rel=0.03)
    steady_two = Simulation(measured_worker(), Fixed((0.0, 0.0)), 1).closed(2, 2000)
    assert max(job.total_s for job in steady_two.jobs) < 5


def test_one_queue_in_front_of_one_worker_waits_as_long_as_theory_says() -> None:
    """M/D/1: mean wait = rho * S / (2 (1 - rho))."""
    service = Service((1.0,))
    times = list(Arrivals(steady(0.7, 60_000), 1.0, seed=4).times_s())
    outcome = Simulation(service, Fixed((0.0,))).open(times)
    wait = sum(job.delay_s for job in outcome.jobs) / len(outcome.jobs)
    assert wait == pytest.approx(0.7 / (2 * 0.3), rel=0.06)


def test_a_worker_with_slots_runs_them_together_and_they_slow_each_other_down() -> None:
    service = Service((1.0,), slots=4, slowdown=0.25)
    outcome = Simulation(service, Fixed((0.0,))).closed(4, 40)
    assert middle(outcome)[0] == pytest.approx(1.75)
    assert outcome.jobs[-1].done_s == pytest.approx(10 * 1.75)
    alone = Simulation(service, Fixed((0.0,))).closed(1, 10)
    assert middle(alone)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["REQUEST_COUNT", "QUEUE_DELAY"])
def test_an_autoscaler_starts_workers_when_wanted_and_stops_them_when_idle(kind: str) -> None:
    scaler = Autoscaler(
        kind="REQUEST_COUNT" if kind == "REQUEST_COUNT" else "QUEUE_DELAY",
        value=2,
        workers_max=3,
        cold_start_s=10,
        idle_timeout_s=5,
    )
    times = [0.0] * 8 + [100.0]
    outcome = Simulation(Service((2.0,)), scaler).open(times)
    first, last = outcome.jobs[0], outcome.jobs[-1]
    assert first.delay_s == pytest.approx(10, abs=0.01)
    assert last.delay_s == pytest.approx(10, abs=0.01)  # idle for longer than the timeout: everything starts again
    # REQUEST_COUNT wants ceil(8 / 2) = 4 and gets the 3 allowed; QUEUE_DELAY starts one, then one per second after 2 s.
    # For the late job QUEUE_DELAY starts all three: it waits more than 2 s for the first of them.
    assert outcome.cold_starts == (3 + 1 if kind == "REQUEST_COUNT" else 3 + 3)
    assert len({job.worker for job in outcome.jobs[:8]}) == 3


# -- capacity --


async def test_capacity_fitted_to_one_and_four_clients_forecasts_poisson_arrivals_on_two_workers(
    load_test: LoadTest,
) -> None:
    def endpoint(workers: int) -> Script:
        return Script(job=lambda _: JobScript(exec_s=0.4), workers=workers, dispatch_s=0.05, after_s=0.005)

    async with scripted(endpoint(1)) as server:
        fitted = await load_test(server.url, "-c", "1", "4", "--runs", "10")
    found = fit(fitted.recorded.jobs)
    assert found.service.slots == 1
    assert sorted(found.service.exec_s)[len(found.service.exec_s) // 2] == pytest.approx(0.4, rel=0.02)
    assert found.service.pickup_idle_s == pytest.approx(0.05, abs=0.015)
    assert found.service.pickup_busy_s == pytest.approx(0.055, abs=0.015)
    async with scripted(endpoint(2)) as server:
        real = await load_test(server.url, "--rate", "2.5", "--duration", "12s", "--seed", "3")
        arrived = server.taken_s[1:]  # without the warm-up
    # Arrivals, queue and execution as the server had them: a busy machine delays what is between it and the client.
    times = [at - arrived[0] for at in arrived]
    outcome = Simulation(found.service, Fixed((0.0, 0.0))).open(times)
    simulated = to_jobs(outcome)
    for p in (50, 90):
        forecast = nearest_rank(sorted((job.delay_ms or 0) + (job.exec_ms or 0) for job in simulated), p)
        measured = nearest_rank(sorted(job.delay_ms + job.exec_ms for job in real.measured), p)
        assert forecast == pytest.approx(measured, rel=0.1), p


def test_two_runs_of_one_worker_did_not_happen_at_once() -> None:
    run = to_jobs(Simulation(measured_worker(), Fixed((0.0,)), 1).closed(1, 20))
    found = fit(on_one_axis([run, run, run]))
    assert (found.service.slots, found.jobs) == (1, 60)


def test_a_job_goes_to_the_worker_that_can_start_it_first() -> None:
    """Two workers that need 0.5 s between jobs: the second job does not wait for the first worker's pause."""
    outcome = Simulation(Service((0.4,), pickup_busy_s=0.5), Fixed((0.0, 0.0))).open([0.0, 0.45])
    assert [job.total_s for job in outcome.jobs] == pytest.approx([0.4, 0.4])


def test_the_smallest_fleet_that_holds_is_found_and_one_less_does_not_hold() -> None:
    jobs = to_jobs(Simulation(measured_worker(), Fixed((0.0,)), 1).closed(1, 60))
    found = fit(jobs)
    slos = [parse_slo("total.p95<8s")]
    less, enough = Forecast(found, slos, usd_per_h=0.4, duration_s=3600).smallest_fleet(1.0, 20)
    assert (less.passes, enough.passes) == (False, True)
    assert int(enough.fleet) == int(less.fleet) + 1
    # One job a second needs at least 3.45 workers' time.
    assert 4 <= int(enough.fleet) <= 7
    assert enough.usd_per_h == pytest.approx(0.4 * int(enough.fleet), rel=0.02)
    assert enough.usd_per_1k == pytest.approx(0.4 * int(enough.fleet) / 3.6, rel=0.05)


def test_more_load_never_looks_faster() -> None:
    found = fit(to_jobs(Simulation(measured_worker(), Fixed((0.0,)), 1).closed(1, 60)))
    slos = [parse_slo("total.p95<8s")]
    p95 = [Forecast(found, slos).at(2, rate).rows["total"].at(95.0) for rate in (0.1, 0.3, 0.5)]
    values = [one.value for one in p95 if one is not None]
    assert values == sorted(values)
    assert len(values) == 3


async def test_the_capacity_command_answers_in_workers_and_dollars(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.1), workers=1, dispatch_s=0.02)) as server:
        run = await load_test(server.url, "-c", "1", "3", "--runs", "15")
    words = ["capacity", str(run.directory), "--slo", "total.p95<500ms", "--gpu-price", "0.4", "--duration", "2m"]
    ended = command(*words, "--rate", "20", "--scaler", "REQUEST_COUNT:1", "--format", "json")
    assert ended.code == 0, ended.err
    answers = json.loads(ended.out)["answers"]
    fixed = [one for one in answers if ":" not in one["fleet"]]
    assert [one["holds"] for one in fixed][-1] is True
    assert 3 <= int(fixed[-1]["fleet"]) <= 5
    assert fixed[-1]["usd_per_h"] == pytest.approx(0.4 * int(fixed[-1]["fleet"]), rel=0.05)
    assert any(one["fleet"] == "REQUEST_COUNT:1" for one in answers)
    table = command(*words)
    assert table.code == 0
    assert "highest rate" in table.out
    hopeless = await door(
        "capacity", str(run.directory), "--slo", "total.p95<50ms", "--rate", "1", "--max-workers", "5"
    )
    assert hopeless.code == 3
    nothing = command("capacity", str(run.directory))
    assert (nothing.code, "needs an --slo" in nothing.err) == (2, True)


# -- comparing --


async def test_compare_finds_a_slower_run_and_leaves_an_equal_one_in_peace(load_test: LoadTest) -> None:
    def script(exec_ms: float, seed: int) -> Script:
        draw = random.Random(seed)
        return Script(job=lambda _: JobScript(exec_s=(exec_ms + draw.uniform(-50, 50)) / 1000))

    async def run(exec_ms: float, seed: int) -> Result:
        async with scripted(script(exec_ms, seed)) as server:
            return await load_test(server.url, "-c", "4", "--runs", "60")

    # At the same time: what else the machine does slows all of them.
    a, same, slower = await asyncio.gather(run(200, 1), run(200, 2), run(300, 3))
    found = {(one.metric, one.p): one for one in compare(a.recorded, slower.recorded, [50, 95]).differences}
    assert found["total", 50].clear
    assert found["total", 50].low_ms < 100 < found["total", 50].high_ms + 8
    assert not {(one.metric, one.p): one for one in compare(a.recorded, same.recorded, [50]).differences}[
        "exec", 50
    ].clear
    ended = command("compare", str(a.directory), str(slower.directory), "--fail-on-slower", "10%")
    assert ended.code == 3
    assert "slower" in ended.out
    ended = command("compare", str(a.directory), str(same.directory), "--fail-on-slower", "40%", "--format", "json")
    assert ended.code == 0
    assert json.loads(ended.out)["differences"]
