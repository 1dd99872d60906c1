"""What the load tester itself costs: python bench/loadtest.py

1. 200 clients against a responder that takes 50 ms: what the load tester adds, beside bare aiohttp doing the same in
the same run.
2. One hour at 10 requests per second: memory, from the same 36,000 requests sent faster, plus what an hour's watching
adds.
3. The report of 100,000 recorded jobs: seconds.

The machine's load stands beside the figures. The report is judged by its CPU time, which is what an idle core would
take; a latency that bare aiohttp misses in the same run says that the machine is busy, and is not judged. Exits 1 when
a figure misses its limit.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import web

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from llmpod.loadtest.model import job_record, plan, run_files  # noqa: E402
from llmpod.loadtest.model.job_record import Job  # noqa: E402
from llmpod.loadtest.model.plan import Phase, Plan  # noqa: E402
from llmpod.loadtest.stats import nearest_rank  # noqa: E402

CLIENTS, SERVICE_MS, MEASURED = 200, 50, 10_000
HOUR_REQUESTS = 36_000
ROUNDS = 3
LIMITS = {"added p50": 20.0, "added p99": 150.0, "memory": 200.0, "report": 5.0}


def respond(service_ms: float) -> None:
    """A server process: every /runsync is COMPLETED after `service_ms`."""
    body = {
        "id": "j",
        "status": "COMPLETED",
        "delayTime": 0,
        "executionTime": service_ms,
        "workerId": "w",
        "output": {"text": "x" * 200},
    }

    async def runsync(_: web.Request) -> web.Response:
        await asyncio.sleep(service_ms / 1000)
        return web.json_response(body)

    async def health(_: web.Request) -> web.Response:
        workers = {"idle": 0, "running": 1, "initializing": 0, "throttled": 0}
        return web.json_response(
            {"jobs": {"inQueue": 0, "inProgress": 1, "completed": 0, "failed": 0, "retried": 0}, "workers": workers}
        )

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v2/bench/runsync", runsync)
        app.router.add_get("/v2/bench/health", health)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v2/bench", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


def start_responder(service_ms: float) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--respond", str(service_ms)], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


async def bare(url: str) -> list[float]:
    """The same closed loop with aiohttp and nothing else."""
    took: list[float] = []
    left = MEASURED

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            start = time.perf_counter()
            async with session.post(url + "/runsync", json={"input": {"prompt": "hello"}}) as reply:
                await reply.json()
            took.append((time.perf_counter() - start) * 1000)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client(session))
    return sorted(took[CLIENTS:])  # the first of each client opens its connection


def load_test(url: str, folder: Path, clients: int, runs: int) -> tuple[list[float], float, float]:
    """(totals in ms, ascending; peak resident memory in MiB; CPU seconds) of a run of the real thing."""
    words = [
        "--base-url", url, "-c", str(clients), "--runs", str(runs), "--limits", "off", "--ui", "none",
        "--format", "quiet", "--out", str(folder), "--max-tokens", "16",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, str(ROOT / "rp_load_test.py"), *words])
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 5), status
    jobs = run_files.read(folder).jobs
    return (
        sorted(job.total_ms or 0.0 for job in jobs if job.counts and job.ok),
        usage.ru_maxrss / 1024,
        usage.ru_utime + usage.ru_stime,
    )


def record_100k(folder: Path) -> None:
    run_files.make_directory(folder)
    phase = Phase("c=50", "closed", "soak", concurrency=50, requests=100_000)
    facts = {
        "format": run_files.FORMAT,
        "meta": {"endpoint": "made up"},
        "plan": plan.to_dict(Plan((phase,), "run", 0)),
        "imported": True,
    }
    run_files.write_json(folder / run_files.PLAN, facts)
    with (folder / run_files.REQUESTS).open("w") as file:
        for n in range(100_000):
            job = Job(
                "c=50",
                n,
                "measured",
                "run",
                sent_ms=n * 20.0,
                done_ms=n * 20.0 + 1000 + n % 97,
                total_ms=1000.0 + n % 97,
            )
            job.delay_ms, job.exec_ms, job.ok, job.worker_id = 200.0 + n % 31, 750.0 + n % 53, True, f"w{n % 5}"
            job.output_tokens, job.job_id, job.states, job.finish_reason = (
                150,
                f"j{n}",
                [("COMPLETED", job.done_ms or 0.0)],
                "stop",
            )
            job.sent_at, job.http_status, job.polls = "2026-01-01T00:00:00.000Z", 200, 2
            file.write(json.dumps(job_record.to_dict(job)) + "\n")


def show(name: str, value: float, unit: str, more: str = "", *, base: float = 0.0) -> bool:
    """Prints a figure; False when it misses a limit that the base (the same without the load tester) keeps with a fifth
    to spare."""
    limit = LIMITS[name]
    word = "ok" if value < limit else "MISS" if base < 0.8 * limit else "BUSY"
    print(f"{word:4}  {name:10} {value:8.1f} {unit:4} (limit {limit:g}){more}", flush=True)
    return word != "MISS"


def main() -> int:
    held = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, url = start_responder(SERVICE_MS)
        print(f"{CLIENTS} clients, {MEASURED} requests, responder {SERVICE_MS} ms, best of {ROUNDS} rounds", flush=True)
        print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}", flush=True)
        alone, ours = [], []
        for number in range(ROUNDS):
            alone.append(asyncio.run(bare(url)))
            ours.append(load_test(url, folder / f"budget{number}", CLIENTS, MEASURED)[0])
        process.terminate()
        for p in (50, 99):
            added = min(nearest_rank(totals, p) for totals in ours) - SERVICE_MS
            base = min(nearest_rank(totals, p) for totals in alone) - SERVICE_MS
            held.append(show(f"added p{p}", added, "ms", f"; bare aiohttp adds {base:.1f} ms", base=base))
        process, url = start_responder(1)
        _, idle_mib, idle_cpu_s = load_test(url, folder / "idle", 1, 10)
        _, peak_mib, cpu_s = load_test(url, folder / "hour", 20, HOUR_REQUESTS)
        process.terminate()
        each_ms = (cpu_s - idle_cpu_s) / HOUR_REQUESTS * 1000
        print(f"      CPU per request {each_ms:.2f} ms, its share of the report included")
        # An hour has 3600 / 0.02 wake-ups of 4 bytes, and 1800 /health samples of about 1 KiB, whatever the rate.
        watching_mib = (180_000 * 4 + 1800 * 1024) / 2**20
        held.append(
            show("memory", peak_mib + watching_mib, "MiB", f"; {HOUR_REQUESTS} requests, {idle_mib:.0f} MiB with 10")
        )
        record_100k(folder / "big")
        start = time.perf_counter()
        words = [sys.executable, str(ROOT / "rp_load_test.py"), "report", str(folder / "big"), "--format", "quiet"]
        process = subprocess.Popen(words)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        wall_s = time.perf_counter() - start
        held.append(
            show(
                "report",
                usage.ru_utime + usage.ru_stime,
                "s",
                f"; CPU for 100,000 jobs; {wall_s:.1f} s on this machine now",
            )
        )
    return 0 if all(held) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--respond"]:
        respond(float(sys.argv[2]))
    else:
        sys.exit(main())
