"""The job loop alone: a scripted engine of a known pace, our loop and the SDK's, through the local endpoint.

    python bench/loop.py

The engine says 100 tokens/s per job and costs nothing, so what is above its own time is the loop's, the endpoint's and
the clients', which share one thread. Seconds, not minutes; for the real engine see worker.py.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

import pytest  # noqa: E402
from runpod.serverless.modules import rp_logger  # noqa: E402

from llmpod.endpoint import Job  # noqa: E402
from llmpod.worker.queue.loop import EngineJobScaler, EventJobScaler  # noqa: E402
from tests.worker.scripted import ScriptedEngine, Serving, serving  # noqa: E402

PACE = 100
SLOTS = 16
CLIENTS = 64


async def main() -> None:
    rp_logger.RunPodLogger.log = lambda *arguments, **rest: None
    columns = {}
    for name, base in (("stock loop", EngineJobScaler), ("llmpod", EventJobScaler)):
        with pytest.MonkeyPatch.context() as patch:
            engine = ScriptedEngine(tokens_per_s=PACE, max_num_seqs=SLOTS)
            async with serving(patch, engine, base=base, options={"rate_limits": False}) as served:
                columns[name] = await figures(served)
            crowd = ScriptedEngine(tokens_per_s=PACE, max_num_seqs=CLIENTS)
            async with serving(patch, crowd, base=base, options={"rate_limits": False}) as served:
                columns[name]["TTFT ms, 64 clients, RTT 0"] = await crowded_ttft_ms(served)
    stock, ours = columns.values()
    print("| | stock loop | llmpod | llmpod / stock |\n|---|---|---|---|")
    for row, value in ours.items():
        print(f"| {row} | {stock[row]:.1f} | {value:.1f} | {value / stock[row]:.2f} |")


async def figures(served: Serving) -> dict[str, float]:
    found: dict[str, float] = {}
    for rtt_ms in (0, 30):
        served.endpoint.set_faults(network_latency_ms=rtt_ms)
        jobs = [await served.run(stream=True, sampling_params={"max_tokens": 5}) for _ in range(20)]
        found[f"TTFT ms, 1 client, RTT {rtt_ms}"] = 1000 * statistics.median(
            job.first_chunk_s - job.submitted_s for job in jobs if job.first_chunk_s
        )
        jobs = [await served.run(sampling_params={"max_tokens": 5}) for _ in range(20)]
        above = [job.finished_s - job.submitted_s - 4 / PACE for job in jobs if job.finished_s]
        found[f"total ms above the engine's, 1 client, not streamed, RTT {rtt_ms}"] = 1000 * statistics.median(above)
    served.endpoint.set_faults(network_latency_ms=0, post_latency_ms=50)
    found["token age ms, p50, 50 ms per POST"] = 1000 * statistics.median(await ages(served))
    served.endpoint.set_faults(post_latency_ms=0)
    began = time.monotonic()
    ids = [await served.submit(sampling_params={"max_tokens": 21}) for _ in range(20 * SLOTS)]
    for job_id in ids:
        await served.ended(job_id, 120)
    found["seconds for 20 rounds of 0.2 s, all slots"] = time.monotonic() - began
    return found


async def crowded_ttft_ms(served: Serving) -> float:
    """Clients that each send their next job when the last has ended, all of them at the same moment at first."""
    firsts: list[float] = []
    ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
    served.endpoint.listen(lambda job, was, reason: ended[job.id].set() if job.ended else None)

    async def client() -> None:
        for _ in range(4):
            job_id = await served.submit(stream=True, sampling_params={"max_tokens": 128})
            await ended[job_id].wait()
            job = served.endpoint.job(job_id)
            assert job.first_chunk_s is not None
            firsts.append(job.first_chunk_s - job.submitted_s)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return 1000 * statistics.median(firsts)


async def ages(served: Serving) -> list[float]:
    """Of each token of one stream: from its making until RunPod has it."""
    began = time.monotonic()
    job_id = await served.submit(stream=True, sampling_params={"max_tokens": 300})
    while not served.engine.requests and time.monotonic() - began < 5:
        began = time.monotonic()
        await asyncio.sleep(0.0005)
    found: list[float] = []
    job: Job = served.endpoint.job(job_id)
    seen = 0
    while not job.ended:
        for chunk in job.chunks[seen:]:
            tokens = chunk.count(b"w")
            now = time.monotonic()
            found += [now - (began + (len(found) + number) / PACE) for number in range(tokens)]
        seen = len(job.chunks)
        await asyncio.sleep(0.001)
    return found


if __name__ == "__main__":
    asyncio.run(main())
