"""Measures the local endpoint with the stock SDK as its worker, and prints one table: python bench/endpoint.py

The endpoint, the worker and the clients are three processes and share the machine's cores. What the figures mean:

added latency   one client, /runsync, a handler that does nothing: the client's total minus the time between the SDK's
                having read the job and its starting to post the result (its pick-up wait and the handler). Everything
                else counts as the endpoint's: three HTTP exchanges, also the clients' halves of them. The worker's
                SDK concurrency is 8: at 1 the SDK stops asking for jobs for a second after each one.
jobs/s          64 clients in a closed loop on /runsync, take policy `one`, one worker with SDK concurrency 256.
                (A smaller one meets the SDK's own stall: it sleeps 1 s when it counts itself full.)
memory          resident set of the endpoint process with 10,000 finished jobs, and what they added.
/health         round trip of a single client, at rest with those jobs in memory, and during the 64-client load.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
PORT = 8931
URL = f"http://127.0.0.1:{PORT}/v2/local"
TARGETS = {"added": 5.0, "rate": 400.0, "memory": 200.0, "health": 5.0}


def percentile(values, share):
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Endpoint:
    """`python -m llmpod.endpoint` as a process, with one worker."""

    def __init__(self, concurrency, notes=None):
        self.env = os.environ | {"BENCH_CONCURRENCY": str(concurrency), "PYTHONPATH": str(ROOT / "src")}
        if notes:
            self.env["BENCH_NOTES"] = str(notes)

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmpod.endpoint", "--port", str(PORT), "--workers-min", "1", "--workers-max", "1",
            "--command", f"{sys.executable} -u {ROOT / 'bench' / 'endpoint_worker.py'}", "--no-rate-limits",
            "--take-policy", "one", "--journal", "", "--no-console", "--worker-log-level", "ERROR", "--grace-s", "5",
            env=self.env,
        )  # fmt: skip
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while True:
                try:
                    async with session.get(URL + "/health") as response:
                        if (await response.json())["workers"]["ready"]:
                            return self
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)

    async def __aexit__(self, *error):
        self.process.terminate()
        await self.process.wait()

    def rss_mb(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


async def runsync(session):
    async with session.post(URL + "/runsync", json={"input": {}}) as response:
        body = await response.json()
        assert body["status"] == "COMPLETED", body
        return body["id"]


async def health_ms(session, seconds, pause_s=0.01):
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.monotonic()
        async with session.get(URL + "/health") as response:
            await response.read()
        took.append(1000 * (time.monotonic() - started))
        await asyncio.sleep(pause_s)
    return took


async def measure_added(jobs):
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        totals = {}
        async with Endpoint(8, notes), aiohttp.ClientSession() as session:
            for _ in range(20):
                await runsync(session)
            for _ in range(jobs):
                started = time.monotonic()
                job_id = await runsync(session)
                totals[job_id] = time.monotonic() - started
        sdk = {job_id: posting - got for job_id, got, posting in map(json.loads, notes.read_text().splitlines())}
    added = [1000 * (total - sdk[job_id]) for job_id, total in totals.items()]
    return added, [1000 * total for total in totals.values()]


async def measure_load(clients, seconds):
    async with Endpoint(256) as endpoint:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            done = 0
            stop = time.monotonic() + seconds

            async def client():
                nonlocal done
                while time.monotonic() < stop:
                    await runsync(session)
                    done += 1

            started = time.monotonic()
            *_, busy = await asyncio.gather(*(client() for _ in range(clients)), health_from_elsewhere(seconds))
            rate = done / (time.monotonic() - started)
        return rate, busy, endpoint.rss_mb()


async def health_from_elsewhere(seconds):
    """From a process of its own, so that the round trip does not wait for the 64 clients' event loop."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--health-probe", str(seconds), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return json.loads(out)


async def measure_memory(jobs):
    async with Endpoint(256) as endpoint, aiohttp.ClientSession() as session:
        before = endpoint.rss_mb()
        last = None
        for _ in range(jobs):
            async with session.post(URL + "/run", json={"input": {}}) as response:
                last = (await response.json())["id"]
        async with session.get(f"{URL}/status-sync/{last}") as response:
            assert (await response.json())["status"] == "COMPLETED"
        async with session.get(URL + "/health") as response:
            assert (await response.json())["jobs"]["completed"] == jobs
        return before, endpoint.rss_mb(), await health_ms(session, 3)


def row(name, value, target, met):
    verdict = "" if target is None else f"{target:>12} {'yes' if met else 'NO'}"
    print(f"{name:<58} {value:>14} {verdict}")


async def main(options):
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    added, totals = await measure_added(options.jobs)
    rate, busy, _ = await measure_load(64, options.seconds)
    before, after, rest = await measure_memory(10_000)
    print(f"{'':<58} {'measured':>14} {'target':>12} met")
    middle = percentile(added, 0.5)
    row(
        f"added by the endpoint, 1 client, p50 of {len(added)}",
        f"{middle:.2f} ms",
        "<= 5 ms",
        middle <= TARGETS["added"],
    )
    row("added by the endpoint, 1 client, p90", f"{percentile(added, 0.9):.2f} ms", None, True)
    row("whole /runsync (SDK pick-up included), 1 client, p50", f"{percentile(totals, 0.5):.1f} ms", None, True)
    row(f"64 clients, take policy one, {options.seconds} s", f"{rate:.0f} jobs/s", ">= 400/s", rate >= TARGETS["rate"])
    row("endpoint process with 10,000 finished jobs", f"{after:.0f} MB", "< 200 MB", after < TARGETS["memory"])
    row("  of which the jobs", f"{after - before:.0f} MB", None, True)
    worst = percentile(rest, 0.99)
    row("/health with 10,000 finished jobs, p50", f"{percentile(rest, 0.5):.2f} ms", None, True)
    row("/health with 10,000 finished jobs, p99", f"{worst:.2f} ms", "< 5 ms", worst < TARGETS["health"])
    row("/health during the 64 clients, p50", f"{percentile(busy, 0.5):.2f} ms", None, True)
    row("/health during the 64 clients, p99", f"{percentile(busy, 0.99):.2f} ms", None, True)


async def probe(seconds):
    async with aiohttp.ClientSession() as session:
        print(json.dumps(await health_ms(session, seconds)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="jobs for the added latency (default: 200)")
    parser.add_argument("--seconds", type=int, default=15, help="seconds of the 64-client load (default: 15)")
    parser.add_argument("--health-probe", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    asyncio.run(probe(given.health_probe) if given.health_probe else main(given))
