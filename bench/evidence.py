"""How often the load tester's sentences are wrong, how often they find what is there, and how often its intervals hold.

`make bench-evidence`; `--runs N` simulated runs per line (default 100), `--seed N`. Everything is simulated: the truth
is known, nothing is measured, and the same seed prints the same tables. Exit code 1 when a line misses its target:

- A sentence is wrong in at most 5 % of runs in which it is not true.
- A printed interval that does not hold stands in at most 5 % of runs (runs that print n/a claim nothing).
- Of those that are printed, at least 92 % hold, where a tenth of the runs or more print one: also where only the runs
  that met few busy times do.

All allow for the noise of the number of runs (two standard errors). The constants of stats.py and dependence.py were
chosen on other worlds (lognormal, Erlang and hyperexponential services, several workers, other closed loops,
autoregressive series, other loads) with other seeds.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from llmpod.loadtest.analysis.analyse import analyse
from llmpod.loadtest.analysis.phase import PhaseReport, View
from llmpod.loadtest.analysis.slo import judge, parse
from llmpod.loadtest.analysis.sweep import climb
from llmpod.loadtest.capacity.capacity import Forecast, to_jobs
from llmpod.loadtest.capacity.fit import Fit, fit, on_one_axis
from llmpod.loadtest.capacity.simulate import Fixed, Service, Simulation, Withheld
from llmpod.loadtest.cli.compare import compare
from llmpod.loadtest.model import plan as plans
from llmpod.loadtest.model.arrivals import Arrivals, steady
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase, Plan, Sweep
from llmpod.loadtest.model.run_files import Recorded
from llmpod.loadtest.stats import quantiles

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
WORST = 0.05


@dataclass(frozen=True)
class Line:
    """One row of a table, and whether it meets its target."""

    cells: tuple[str, ...]
    met: bool


def within(hits: int, runs: int, most: float) -> bool:
    """Whether `hits` of `runs` are no evidence of a rate above `most`."""
    return hits <= runs * most + 2 * math.sqrt(runs * most * (1 - most)) + 1e-9


# -- samples with a known truth --


def sojourns(draw: random.Random, kind: str, rho: float, n: int) -> list[float]:
    """Times in a queue with one server of mean 1, from its stationary state."""
    wait = draw.expovariate(1 - rho) if draw.random() < rho and kind == "M/M/1" else 0.0
    out = []
    for _ in range(n + (0 if kind == "M/M/1" else 1000)):
        work = draw.expovariate(1.0) if kind == "M/M/1" else 1.0
        out.append(wait + work)
        wait = max(0.0, wait + work - draw.expovariate(rho))
    return out[-n:]


@cache
def true_quantiles(kind: str, rho: float) -> dict[float, float]:
    if kind == "M/D/1":
        values = sorted(sojourns(random.Random(1), kind, rho, 2_000_000))
        return {p: values[math.ceil(p / 100 * len(values)) - 1] for p in PERCENTILES}
    return {p: -math.log(1 - p / 100) / ((1 - rho) if kind == "M/M/1" else 1.0) for p in PERCENTILES}


def two_states(draw: random.Random, n: int) -> list[float]:
    """A soak on one worker or two, each for 300 jobs on average: 6.9 s or 3.4 s, half of the time each."""
    slow, out = draw.random() < 0.5, []
    for _ in range(n):
        slow ^= draw.random() < 1 / 300
        out.append(draw.gauss(6.9 if slow else 3.4, 0.1))
    return out


def clients(draw: random.Random, number: int, workers: int, n: int) -> list[float]:
    """Totals of a closed loop, in order of sending, of `number` clients on so many workers; executions of mean 1."""
    free, sending, out = [0.0] * workers, [0.0] * number, []
    for _ in range(n + 500):
        worker, client = free.index(min(free)), sending.index(min(sending))
        sent = sending[client]
        free[worker] = sending[client] = max(sent, free[worker]) + lognormal(draw, 1.0)
        out.append(free[worker] - sent)
    return out[-n:]


@cache
def true_quantiles_of_clients(number: int, workers: int) -> dict[float, float]:
    values = sorted(clients(random.Random(1), number, workers, 500_000))
    return {p: values[math.ceil(p / 100 * len(values)) - 1] for p in PERCENTILES}


QUEUES = tuple((kind, rho) for kind in ("M/M/1", "M/D/1") for rho in (0.5, 0.7, 0.9))
CLIENTS = ((2, 2), (4, 1), (8, 3))


def coverage(
    runs: int,
    seed: int,
    sizes: tuple[int, ...],
    queues: tuple[tuple[str, float], ...] = QUEUES,
    loops: tuple[tuple[int, int], ...] = CLIENTS,
) -> Iterator[Line]:
    systems = [("independent", 0.0, sizes)]
    systems += [(kind, rho, sizes[1:]) for kind, rho in queues]
    for kind, rho, lengths in systems:
        truth = true_quantiles(kind, rho)
        for n in lengths:
            draw = random.Random(f"{seed} {kind} {rho} {n}")

            def sample(draw: random.Random = draw, kind: str = kind, rho: float = rho, n: int = n) -> list[float]:
                return (
                    [draw.expovariate(1.0) for _ in range(n)] if kind == "independent" else sojourns(draw, kind, rho, n)
                )

            yield from _coverage(f"{kind} {rho or ''}".strip(), n, sample, truth, runs)
    for number, workers in loops:
        for n in sizes[1:]:
            draw = random.Random(f"{seed} {number} clients {workers} {n}")
            name = f"{number} clients on {workers}"
            wanted = true_quantiles_of_clients(number, workers)
            yield from _coverage(name, n, partial(clients, draw, number, workers, n), wanted, runs)
    truth = {50.0: 5.15, 90.0: 6.9 + 0.0842, 95.0: 6.9 + 0.1282, 99.0: 6.9 + 0.2054}
    draw = random.Random(f"{seed} two states")
    yield from _coverage("two states", 2400, lambda: two_states(draw, 2400), truth, runs)


def _coverage(
    name: str, n: int, sample: Callable[[], list[float]], truth: dict[float, float], runs: int
) -> Iterator[Line]:
    printed, held = dict.fromkeys(PERCENTILES, 0), dict.fromkeys(PERCENTILES, 0)
    for _ in range(runs):
        for found in quantiles(sample(), PERCENTILES):
            if found.low is not None and found.high is not None:
                printed[found.p] += 1
                held[found.p] += found.low <= truth[found.p] <= found.high
    cells, met = [], True
    for p in PERCENTILES:
        wrong = printed[p] - held[p]
        cells.append(
            f"{wrong / runs:.1%}" + (f" ({held[p] / printed[p]:.0%} of {printed[p]})" if printed[p] else " (n/a)")
        )
        met = met and within(wrong, runs, WORST)
        if printed[p] >= runs / 10:
            met = met and within(wrong, printed[p], 0.08)
    yield Line((name, str(n), *cells), met)


# -- sentences --


def lognormal(draw: random.Random, mean_s: float, sigma: float = 0.5) -> float:
    return mean_s * draw.lognormvariate(-sigma * sigma / 2, sigma)


def service(draw: random.Random, mean_s: float, **other: float) -> Service:
    times = tuple(lognormal(draw, mean_s) for _ in range(2000))
    return Service(times, pickup_idle_s=0.02, pickup_busy_s=0.05, reply_s=0.01, slots=int(other.get("slots", 1)))


def closed(
    draw: random.Random, mean_s: float, workers: int, clients: int, jobs: int, view: View | None = None
) -> tuple[PhaseReport, list[Job]]:
    """A closed loop on a fleet, its first jobs a warm-up, with what /health would have said every 2 s."""
    made = to_jobs(
        Simulation(service(draw, mean_s), Fixed((0.0,) * workers), draw.randrange(10**9)).closed(clients, jobs)
    )
    phase = Phase(f"c={clients}", "closed", "closed", concurrency=clients, requests=jobs)
    for index, job in enumerate(made):
        job.phase, job.index, job.role = phase.name, index, "warmup" if index < clients else "measured"
    return analyse(phase, made, made, health(draw, made, workers), {}, view or View()), made


def health(draw: random.Random, jobs: list[Job], workers: int) -> list[dict[str, object]]:
    """Samples whose counts of idle and running are not taken at one instant: one in ten is off by one."""
    end_ms = max(job.done_ms or 0.0 for job in jobs)
    out: list[dict[str, object]] = []
    for number in range(int(end_ms / 2000) + 1):
        off = -1 if draw.random() < 0.1 else 0
        counts = {"idle": 0, "running": max(0, workers + off), "initializing": 0, "throttled": 0}
        out.append({"t_ms": number * 2000.0, "workers": counts, "jobs": {"inQueue": 0, "inProgress": 0}})
    return out


def slow_worker(draw: random.Random, factor: float, workers: int, jobs: int) -> bool:
    """Whether some worker is said to be SLOW (factor 1), or the slow one is."""
    made = []
    for index in range(workers * jobs):
        worker = index % workers
        job = Job("p", index, "measured", "run", ok=True, worker_id=f"w{worker}")
        job.sent_ms, job.exec_ms = index * 10.0, lognormal(draw, 1000.0) * (factor if worker == 0 else 1.0)
        made.append(replace(job, total_ms=job.exec_ms, delay_ms=0.0, done_ms=job.sent_ms + job.exec_ms))
    report = analyse(Phase("p", "open", "poisson"), made, made, [], {}, View())
    return any(one.slow for one in report.workers if factor == 1 or one.worker_id == "w0")


def shortage(draw: random.Random, workers: int, clients: int) -> bool:
    return "shortage" in closed(draw, 2.0, workers, clients, 60)[0].why


def silence(draw: random.Random, clients: int, stall_s: float) -> bool:
    report, made = closed(draw, 0.1, clients, clients, 300)
    if stall_s:
        cut_ms = (made[150].sent_ms or 0.0) + 1.0
        for job in made:
            if (job.done_ms or 0.0) > cut_ms:
                job.done_ms = (job.done_ms or 0.0) + stall_s * 1000
                if (job.sent_ms or 0.0) > cut_ms:
                    job.sent_ms = (job.sent_ms or 0.0) + stall_s * 1000
                else:
                    job.total_ms = (job.total_ms or 0.0) + stall_s * 1000
        report = analyse(report.phase, made, made, [], {}, View())
    return bool(report.silences)


def knee(draw: random.Random, workers: int, runs: int) -> bool:
    """Whether c=4 after c=2 is called the knee for sure."""
    rungs = [closed(draw, 0.2, workers, clients, max(runs, 3 * clients) + clients)[0] for clients in (1, 2, 4)]
    over = climb(Sweep((1, 2, 4), auto=True), rungs)
    return over is not None and over.kind == "knee" and over.certain


def behind(draw: random.Random, rate: float) -> bool:
    """Whether one worker of 2.9 jobs per second is said not to keep up with a rate."""
    times = list(Arrivals(steady(rate, 200 / rate), 1.0, draw.randrange(10**9)).times_s())
    made = to_jobs(Simulation(service(draw, 0.29), Fixed((0.0,)), draw.randrange(10**9)).open(times))
    for index, job in enumerate(made):
        job.phase, job.index, job.scheduled_ms = "r", index, job.sent_ms
    report = analyse(Phase("r", "open", "sweep"), made, made, [], {}, View())
    return climb(Sweep((rate,), auto=False, by_rate=True), [report]) is not None


def two_kinds(draw: random.Random, rho: float, *, withheld: bool = False) -> bool:
    """A soak of 20 minutes on two workers: at a rate, or four clients, one worker withheld for a third of the time."""
    worker, fleet = service(draw, 2.0), Fixed((0.0, 0.0), (Withheld(300, 700),) if withheld else ())
    run = Simulation(worker, fleet, draw.randrange(10**9))
    arrivals = Arrivals(steady(rho * 2 * worker.per_worker_per_s, 1200), 1.0, draw.randrange(10**9))
    made = to_jobs(run.open(list(arrivals.times_s())) if rho else run.closed(4, 1000))
    report = analyse(Phase("s", "open", "soak"), made, made, [], {}, View(slice_s=20.0))
    return "Two states" in report.why


def certain_pass(draw: random.Random, limit: str) -> bool:
    """Whether an objective passes without "not certain": 4 clients, 1 worker."""
    report, _ = closed(draw, 0.5, 1, 4, 400, View(slos=(parse(limit),)))
    (verdict,) = judge((parse(limit),), report)
    return verdict.passed and verdict.unsure is None


def recorded(draw: random.Random, mean_s: float, jobs: int, phases: int) -> Recorded:
    made, plan = [], []
    for clients in (1, 2, 4)[:phases]:
        report, some = closed(draw, mean_s, 2, clients, jobs + clients)
        made += some
        plan.append(report.phase)
    facts = {"plan": plans.to_dict(Plan(tuple(plan), "runsync", 0)), "meta": {}}
    return Recorded(facts, made, [], [], 0, [])


def differs(draw: random.Random, factor: float, jobs: int, phases: int) -> bool:
    """Whether compare says that anything differs (equal runs), or that the slower run's total or exec is slower."""
    a, b = recorded(draw, 0.5, jobs, phases), recorded(draw, 0.5 * factor, jobs, phases)
    found = compare(a, b, [50.0, 95.0])
    if factor == 1:
        return any(one.clear for one in [*found.differences, *found.rates])
    return any(one.clear and one.b_ms > one.a_ms for one in found.differences if one.metric in ("total", "exec"))


CAPACITY_SLO = (parse("total.p95<1s"),)


@cache
def capacity_truth() -> tuple[Service, float]:
    truth = service(random.Random(99), 0.28)
    best = Forecast(Fit(truth, None, 0, (), None), CAPACITY_SLO).largest_rate(2)  # type: ignore[arg-type]
    assert best is not None
    return truth, best.rate_per_s


def capacity_interval(draw: random.Random) -> tuple[float, float]:
    """From 60 jobs of one client, 80 of three and 12 far apart, as the docs ask."""
    truth, _ = capacity_truth()

    def seen(workers: int, clients: int, jobs: int) -> list[Job]:
        run = Simulation(truth, Fixed((0.0,) * workers), draw.randrange(10**9))
        made = to_jobs(run.closed(clients, jobs) if clients else run.open([3.0 * at for at in range(jobs)]))
        return [replace(job, phase=f"c={clients}") for job in made]

    found = fit(on_one_axis([seen(1, 1, 60), seen(2, 3, 80), seen(2, 0, 12)]))
    forecast = Forecast(found, CAPACITY_SLO, seed=draw.randrange(10**6))
    best = replace(forecast, seed=0).largest_rate(2)
    assert best is not None
    return forecast.highest_interval(2, best.rate_per_s)


Said = Callable[[random.Random], bool]
SENTENCES: list[tuple[str, str, bool, Said]] = [
    *[
        (
            "SLOW",
            f"{workers} equal workers, {jobs} jobs each",
            False,
            lambda d, w=workers, j=jobs: slow_worker(d, 1, w, j),
        )
        for workers in (2, 4, 8)
        for jobs in (10, 50, 200)
    ],
    *[
        (
            "SLOW",
            f"one of 4 slower by {factor - 1:.0%}, {jobs} jobs each",
            True,
            lambda d, f=factor, j=jobs: slow_worker(d, f, 4, j),
        )
        for factor, jobs in ((1.2, 50), (1.2, 200), (1.5, 50), (1.5, 200), (2.0, 50))
    ],
    ("worker shortage", "2 clients on 2 workers", False, lambda d: shortage(d, 2, 2)),
    ("worker shortage", "3 clients on 4 workers", False, lambda d: shortage(d, 4, 3)),
    ("worker shortage", "4 clients on 2 workers", True, lambda d: shortage(d, 2, 4)),
    ("nothing was answered", "1 client, no stall", False, lambda d: silence(d, 1, 0)),
    ("nothing was answered", "4 clients, no stall", False, lambda d: silence(d, 4, 0)),
    ("nothing was answered", "4 clients, a stall of 2 s", True, lambda d: silence(d, 4, 2.0)),
    ("knee", "c=2 to c=4 on 4 workers, 40 jobs", False, lambda d: knee(d, 4, 40)),
    ("knee", "c=2 to c=4 on 4 workers, 15 jobs", False, lambda d: knee(d, 4, 15)),
    ("knee", "c=2 to c=4 on 3 workers (+38 %), 200 jobs", True, lambda d: knee(d, 3, 200)),
    ("knee", "c=2 to c=4 on 2 workers, 40 jobs", True, lambda d: knee(d, 2, 40)),
    ("knee", "c=2 to c=4 on 2 workers, 200 jobs", True, lambda d: knee(d, 2, 200)),
    ("the queue grows", "at 70 % of the worker's rate", False, lambda d: behind(d, 2.0)),
    ("the queue grows", "at 95 % of the worker's rate", False, lambda d: behind(d, 2.7)),
    ("the queue grows", "at 150 % of the worker's rate", True, lambda d: behind(d, 4.3)),
    ("two states", "4 clients on 2 workers", False, lambda d: two_kinds(d, 0)),
    ("two states", "a queue at 70 % of 2 workers' rate", False, lambda d: two_kinds(d, 0.7)),
    ("two states", "a queue at 90 % of 2 workers' rate", False, lambda d: two_kinds(d, 0.9)),
    ("two states", "one of 2 workers withheld for a third", True, lambda d: two_kinds(d, 0, withheld=True)),
    ("met, and certain", "p50 in truth 6 % above the limit", False, lambda d: certain_pass(d, "total.p50<2.03s")),
    ("met, and certain", "p50 in truth 20 % below the limit", True, lambda d: certain_pass(d, "total.p50<2.7s")),
    ("compare: differs", "equal, 1 phase of 40 jobs", False, lambda d: differs(d, 1, 40, 1)),
    ("compare: differs", "equal, 3 phases of 40 jobs", False, lambda d: differs(d, 1, 40, 3)),
    ("compare: differs", "equal, 3 phases of 200 jobs", False, lambda d: differs(d, 1, 200, 3)),
    ("compare: differs", "20 % slower, 1 phase of 40 jobs", True, lambda d: differs(d, 1.2, 40, 1)),
    ("compare: differs", "20 % slower, 3 phases of 200 jobs", True, lambda d: differs(d, 1.2, 200, 3)),
    ("compare: differs", "50 % slower, 1 phase of 40 jobs", True, lambda d: differs(d, 1.5, 40, 1)),
]


def sentences(runs: int, seed: int) -> Iterator[Line]:
    for name, world, true, said in SENTENCES:
        draw = random.Random(f"{seed} {name} {world}")
        times = sum(said(draw) for _ in range(runs))
        share = f"{times / runs:.1%}"
        yield Line((name, world, "" if true else share, share if true else ""), true or within(times, runs, WORST))


def capacity(runs: int, seed: int) -> Iterator[Line]:
    _, truth = capacity_truth()
    draw = random.Random(f"{seed} capacity")
    found = [capacity_interval(draw) for _ in range(runs)]
    missed = sum(1 for low, high in found if not low <= truth <= high)
    above = sum(1 for low, _ in found if low > truth)
    width = sorted(high / low for low, high in found)[runs // 2]
    cells = (f"{truth:.2f}/s", f"{1 - missed / runs:.0%} of {runs}", f"{above / runs:.0%}", f"x {width:.2f}")
    yield Line(cells, within(missed, runs, WORST) and within(above, runs, WORST))


def table(heads: tuple[str, ...], lines: Iterator[Line]) -> bool:
    print(f"| {' | '.join(heads)} | |\n|{'---|' * (len(heads) + 1)}")
    met = True
    for line in lines:
        print(f"| {' | '.join(line.cells)} | {'ok' if line.met else 'MISSED'} |", flush=True)
        met = met and line.met
    print()
    return met


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=100)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    runs, seed = chosen.runs, chosen.seed
    print(f"Sentences, {runs} runs each: how often said where it is not true (at most 5 %), and where it is\n")
    met = table(("sentence", "world", "false alarm", "detection"), sentences(runs, seed))
    print(
        f"95 % intervals, {runs} runs each: share of all runs with one that does not hold (of those printed, how many "
        "hold)\n"
    )
    met &= table(("samples", "n", "p50", "p90", "p95", "p99"), coverage(runs, seed, (10, 40, 100, 300, 1000, 3000)))
    few = max(5, runs // 2)
    print(f"capacity's interval of the highest rate, {few} runs of 152 jobs, 2 workers, total.p95<1s\n")
    met &= table(("truth", "holds", "low end above the truth", "median high/low"), capacity(few, seed))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
