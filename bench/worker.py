"""What the worker costs above the bare engine, through RunPod's protocol on this machine; ratios from one run.

    python bench/worker.py                                 this worker, and the SDK's stock loop beside it
    python bench/worker.py --peer DIR --peer-command "python -u src/main.py"     another worker's checkout, too
    python bench/worker.py --cpu [--peer DIR]     processor time per token, job and chunk instead, and of vLLM's server

Every worker gets the settings that are printed above the table; another worker is measured a second time with its own
limit on jobs. Jobs are native ({"prompt", "sampling_params", "stream"}), 128 tokens each. Times are read from the
endpoint's clock: submission, first stream chunk, result. A run takes some minutes; absolute figures belong to the
machine.
"Outside the engine" is a job's total without the time from its arrival in the engine to its last token, by the
engine's clock: a machine that changes its pace between two runs changes the total, but hardly this.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))

import aiohttp  # noqa: E402
import http_server  # noqa: E402 - the one beside this file

from llmpod.endpoint import Job, JobState, LocalEndpoint, Options  # noqa: E402
from llmpod.endpoint.fleet.process_guard import give_way  # noqa: E402

TOKENS = 128
JOB = {"prompt": "How do I prepare for a job interview?", "sampling_params": {"max_tokens": TOKENS, "ignore_eos": True}}
SLOTS = 128
SETTINGS = {"MAX_NUM_SEQS": str(SLOTS), "MAX_CONCURRENCY": str(SLOTS + SLOTS // 4), "VLLM_CPU_KVCACHE_SPACE": "1"}
"""Of every worker. MAX_CONCURRENCY is what llmpod takes by itself for so many slots; worker-vllm's default is 30."""
OUTSIDE = "of it outside the engine"
CPU_CELLS = [(64, True), (128, True), (64, False), (128, False)]
"""Clients, and whether their jobs are streamed, for --cpu."""
CPU_ROUNDS = 4
"""Jobs of each client there."""
Figures = dict[str, float]


class Bench:
    """One worker under load."""

    def __init__(self, endpoint: LocalEndpoint, session: aiohttp.ClientSession, log: Path) -> None:
        """`log`: what the worker prints."""
        self.endpoint = endpoint
        self.session = session
        self.log = log
        self.pid = 0
        self.waiting: dict[str, asyncio.Future[None]] = {}
        endpoint.listen(self._note)

    def _note(self, job: Job, was: JobState | None, reason: str) -> None:
        if job.ended and (waiting := self.waiting.pop(job.id, None)) is not None and not waiting.done():
            waiting.set_result(None)

    async def job(self, *, stream: bool) -> Job:
        async with self.session.post(self.endpoint.url + "/run", json={"input": JOB | {"stream": stream}}) as response:
            job_id = (await response.json())["id"]
        job = self.endpoint.job(job_id)
        if not job.ended:
            ended = self.waiting[job_id] = asyncio.get_running_loop().create_future()
            await ended
        if job.state is not JobState.COMPLETED:
            raise SystemExit(f"job {job.state}: {job.error}")
        return job

    async def load(self, clients: int, jobs: int, *, stream: bool) -> tuple[list[Job], float]:
        """So many clients, each sending its next job when the last has ended; the jobs, and the seconds it took."""
        left = iter(range(jobs))
        done: list[Job] = []

        async def client() -> None:
            for _ in left:
                done.append(await self.job(stream=stream))  # noqa: PERF401 - one after the other

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        return done, time.monotonic() - began

    async def idle_share(self) -> float:
        """Share of engine slots that stood empty while jobs were queued."""
        began = last = time.monotonic()
        empty = seconds = 0.0
        burst = asyncio.create_task(self.load(5 * SLOTS, 5 * SLOTS, stream=False))
        while not burst.done():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            held = sum(len(worker.jobs) for worker in self.endpoint.broker.live())
            if now - began > 1 and len(self.endpoint.store.queue):
                empty += (now - last) * max(0, SLOTS - held)
                seconds += now - last
            last = now
        return empty / (SLOTS * seconds) if seconds else 0.0

    async def outside_ms(self, jobs: list[Job]) -> list[float]:
        """The jobs' median time outside the engine; nothing of a worker whose log does not tell."""
        await asyncio.sleep(0.5)  # for the last job's line
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith('{"ts"')]
        inside = {line["request_id"]: engine_ms(line) for line in lines if line["event"] == "end"}
        if not inside:
            return []
        return [statistics.median(total_ms([job]) - inside[job.id] for job in jobs)]

    async def cpu(self) -> Figures:
        """Processor time of the worker's own processes, without the engine's."""
        figures: Figures = {}
        await self.load(16, 64, stream=True)
        for clients, stream in CPU_CELLS:
            before = http_server.own_cpu_s(self.pid)
            jobs, _ = await self.load(clients, CPU_ROUNDS * clients, stream=stream)
            chunks = sum(len(job.chunks) for job in jobs) if stream else 0
            spent_s = http_server.own_cpu_s(self.pid) - before
            figures |= http_server.cpu(spent_s, len(jobs), chunks, http_server.kind_of(clients, stream))
        return figures

    async def all(self) -> Figures:
        figures: Figures = {}
        await self.load(16, 64, stream=True)  # what the first batches set up
        for rtt_ms in (0, 30):
            self.endpoint.set_faults(network_latency_ms=rtt_ms)
            at = f"RTT {rtt_ms}"
            jobs, _ = await self.load(1, 9, stream=True)
            figures[f"TTFT ms, 1 client, {at}"] = ttft_ms(jobs)
            jobs, _ = await self.load(1, 9, stream=False)
            figures[f"total ms, 1 client, not streamed, {at}"] = total_ms(jobs)
            figures |= {f"{OUTSIDE}, {at}": value for value in await self.outside_ms(jobs)}
            jobs, seconds = await self.load(64, 256, stream=True)
            figures[f"TTFT ms, 64 clients, {at}"] = ttft_ms(jobs)
            figures[f"jobs/s, 64 clients, streamed, {at}"] = len(jobs) / seconds
            jobs, seconds = await self.load(128, 512, stream=False)
            figures[f"jobs/s, 128 clients, not streamed, {at}"] = len(jobs) / seconds
        self.endpoint.set_faults(network_latency_ms=0)
        figures["idle slots while jobs wait, %"] = 100 * await self.idle_share()
        return figures


def engine_ms(times: Mapping[str, float]) -> float:
    """From arrival in the engine to the last token."""
    return times["queue_ms"] + times["prefill_ms"] + times["decode_ms"]


def ttft_ms(jobs: list[Job]) -> float:
    return 1000 * statistics.median(job.first_chunk_s - job.submitted_s for job in jobs if job.first_chunk_s)


def total_ms(jobs: list[Job]) -> float:
    return 1000 * statistics.median(job.finished_s - job.submitted_s for job in jobs if job.finished_s)


async def measure(command: list[str], cwd: Path, variables: dict[str, str], *, cpu: bool = False) -> Figures:
    """Start a worker, measure it (with `cpu`: its processor time only), stop it."""
    options = Options(
        port=0, fleet=False, journal="", console=False, rate_limits=False, take_hold_s=15, stop_hold_s=15,
        execution_timeout_ms=300_000, dead_after_pings=0, lost_after_pings=0,
    )  # fmt: skip
    async with (
        LocalEndpoint(options) as endpoint,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        environment = os.environ | endpoint.worker_env("bench") | {"RUNPOD_LOG_LEVEL": "ERROR"} | variables
        began = time.monotonic()
        log = tempfile.NamedTemporaryFile("w", prefix="bench-worker-", suffix=".log", delete=False)  # noqa: SIM115
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=environment, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=give_way,  # as under the endpoint's own fleet
        )  # fmt: skip
        log.close()
        bench = Bench(endpoint, http, Path(log.name))
        bench.pid = process.pid
        try:
            first = asyncio.create_task(bench.job(stream=False))
            died = asyncio.create_task(process.wait())
            await asyncio.wait((first, died), return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                raise SystemExit(f"the worker ended with {process.returncode}: see {log.name}")
            job = await first
            assert job.taken_s is not None
            if cpu:
                return await bench.cpu()
            cold_start_s = job.taken_s - began
            figures = await bench.all()
            return figures | {"cold start s": cold_start_s}
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(20):
                        await process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def bare() -> Figures:
    """The engine alone, called in its own event loop."""
    from llmpod.worker import environ
    from llmpod.worker.engine.start.engine_start import EngineStart
    from llmpod.worker.jobs.inputs import NativeRequest

    environment = environ.load()
    engine = await EngineStart(environment.settings, environment.others, lambda event, **fields: None).run()
    request = NativeRequest(JOB["prompt"], None, {"ignore_eos": True}, TOKENS, False, None, True)  # type: ignore[arg-type]
    count = iter(range(1_000_000))

    async def one(*, stream: bool) -> tuple[float, float, float]:
        """Seconds to the first output, to the last one, and of these outside the engine."""
        began = time.monotonic()
        first = 0.0
        ids = await engine.render(request)
        params = engine.sampling(request.sampling, TOKENS, stream=stream)
        async for step in engine.generate(ids, params, f"bare-{next(count)}"):
            first = first or time.monotonic() - began
            timings = step.timings
        total = time.monotonic() - began
        return first, total, total - engine_ms(vars(timings)) / 1000

    async def load(clients: int, jobs: int, *, stream: bool) -> tuple[list[tuple[float, float, float]], float]:
        left, done = iter(range(jobs)), []

        async def client() -> None:
            for _ in left:
                done.append(await one(stream=stream))  # noqa: PERF401 - one after the other

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        return done, time.monotonic() - began

    try:
        await load(16, 64, stream=True)
        figures: Figures = {}
        times, _ = await load(1, 9, stream=True)
        figures["TTFT ms, 1 client"] = 1000 * statistics.median(first for first, _, _ in times)
        times, _ = await load(1, 9, stream=False)
        figures["total ms, 1 client, not streamed"] = 1000 * statistics.median(total for _, total, _ in times)
        figures[OUTSIDE] = 1000 * statistics.median(outside for _, _, outside in times)
        times, seconds = await load(64, 256, stream=True)
        figures["TTFT ms, 64 clients"] = 1000 * statistics.median(first for first, _, _ in times)
        figures["jobs/s, 64 clients, streamed"] = len(times) / seconds
        _, seconds = await load(128, 512, stream=False)
        figures["jobs/s, 128 clients, not streamed"] = 512 / seconds
        return figures
    finally:
        engine.shutdown()


def peer_variables() -> dict[str, str]:
    """What makes another worker run the same engine on the same model."""
    return {
        "MODEL_NAME": os.environ.get("MODEL_NAME", str(REPOSITORY / "src" / "llmpod" / "worker" / "demo_model")),
        "DTYPE": "float32",
        "ENFORCE_EAGER": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": http_server.vllm_named(),
    }


def table(columns: dict[str, Figures]) -> str:
    """One row per figure; beside each column its ratio to this worker's."""
    names = list(columns)
    ours = columns["llmpod"]
    lines = ["| | " + " | ".join(names) + " | " + " | ".join(f"llmpod / {name}" for name in names if name != "llmpod")]
    lines[0] += " |"
    lines.append("|" + "---|" * lines[0].count(" | ") + "---|")
    for row, value in ours.items():
        values = [columns[name].get(row, columns[name].get(row.split(", RTT")[0])) for name in names]
        cells = ["" if one is None else f"{one:.1f}" for one in values]
        ratios = [
            "" if not one else f"{value / one:.2f}" for name, one in zip(names, values, strict=True) if name != "llmpod"
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="DIR", help="another worker's checkout")
    parser.add_argument("--peer-command", default="python -u src/main.py", help="how it is started there")
    parser.add_argument("--no-stock", action="store_true", help="leave the SDK's own loop out")
    parser.add_argument("--cpu", action="store_true", help="processor time per token, job and chunk only")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    http_server.end_workers_when_terminated()
    if arguments.bare:
        print(json.dumps(asyncio.run(bare())))
        return
    ours = [sys.executable, "-u", str(REPOSITORY / "handler.py")]
    columns: dict[str, Figures] = {}

    def note(name: str, figures: Figures) -> None:
        columns[name] = figures
        print(json.dumps({name: figures}), file=sys.stderr, flush=True)

    own = SETTINGS | {"MODEL_NAME": "llmpod-demo"}
    command, folder = shlex.split(arguments.peer_command), arguments.peer and arguments.peer.resolve()
    if arguments.cpu:
        note("llmpod", asyncio.run(measure(ours, REPOSITORY, own, cpu=True)))
        if folder:
            note("peer", asyncio.run(measure(command, folder, SETTINGS | peer_variables(), cpu=True)))
        for name, server in (("llmpod over HTTP", "llmpod"), ("vllm serve", "vllm serve")):
            with tempfile.TemporaryDirectory(prefix="bench-cpu-") as logs:
                note(name, http_server.cpu_of(server, Path(logs, "log"), CPU_CELLS, CPU_ROUNDS))
        print(table(columns))
        return
    said = subprocess.run([sys.executable, __file__, "--bare"], check=True, capture_output=True, text=True).stdout
    note("bare engine", json.loads(said.splitlines()[-1]))
    note("llmpod", asyncio.run(measure(ours, REPOSITORY, own)))
    if arguments.peer:
        variables = SETTINGS | peer_variables()
        note("peer", asyncio.run(measure(command, folder, variables)))
        del variables["MAX_CONCURRENCY"]
        note("peer, its default MAX_CONCURRENCY", asyncio.run(measure(command, folder, variables)))
    if not arguments.no_stock:
        note("stock loop", asyncio.run(measure(ours, REPOSITORY, own | {"JOB_LOOP": "stock"})))
    print(f"{os.cpu_count()} cores, {TOKENS}-token answers; RTT in ms, added to every call of the worker")
    print("every worker: " + ", ".join(f"{name}={value}" for name, value in SETTINGS.items()))
    print("and the demonstration model in float32, without torch.compile\n")
    print(table(columns))


if __name__ == "__main__":
    main()
