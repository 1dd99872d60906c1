"""What vLLM's routes cost inside the worker: chat through a route against the bare engine, in one process and one run.

python bench/routes.py [--concurrency 1 16 128] [--rounds 3] [--model …]

Every request generates 128 tokens. The bare engine is `AsyncLLM.generate` with token ids, final output only (or deltas,
for the streamed comparison); a route job goes through `JobRun`, as in the job loop: input, limits, policy, admission,
vLLM's application, server-sent events, taking turns, log lines. Rounds are interleaved, so that a machine whose speed
changes changes both; the best round of each counts. Exit status 1 if a ratio misses its target.

A second table: what ISOLATE_PREFIX_CACHE costs a client whose prompts begin alike. Answers of one token, one at a time,
to questions behind the same system message, with the engine's prefix cache shared between jobs or not; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.start.engine_start import EngineStart
from llmpod.worker.jobs.stream_rate import Pace
from llmpod.worker.queue.job_run import JobRun
from llmpod.worker.queue.result_delivery import Delivery
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker

TOKENS = 128
TARGETS = {"whole": 0.95, "stream": 0.9}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
QUESTION = [{"role": "user", "content": "How do I prepare for a job interview?"}]


def settings(model: str | None, concurrency: int) -> Settings:
    return Settings(
        model_name=model, max_num_seqs=max(8, concurrency), max_tokens_max=TOKENS, max_tokens_default=TOKENS
    )


async def bare(engine: Engine, ids: list[int], number: int, *, stream: bool) -> None:
    params = engine.sampling({"ignore_eos": True, "temperature": 0.8, "seed": number}, TOKENS, stream=stream)
    async with aclosing(engine.generate(ids, params, f"bare-{time.monotonic_ns()}-{number}")) as steps:
        async for _ in steps:
            pass


class Posts(Delivery):
    """RunPod, as one job sees it: each chunk takes so long, and all of them arrive."""

    def __init__(self, post_s: float) -> None:
        self.post_s = post_s
        self.chunks = 0

    async def chunk(self, job_id: str, item: object, **_: object) -> bool:
        self.chunks += 1
        await asyncio.sleep(self.post_s)
        return True

    async def result(self, job_id: str, result: dict[str, Any], **_: object) -> bool:
        assert "output" in result, result
        return True


async def route(worker: Worker, pace: Pace, number: int, *, stream: bool, post_s: float, parsed: bool = False) -> int:
    """One route job, as the job loop runs it; `post_s` stands for the POST of each chunk. How many chunks.

    `parsed`: the client has tools, so a parser reads the answer token by token.
    """
    body = {
        "messages": QUESTION,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0.8,
        "seed": number,
        "stream": stream,
    }
    if parsed:
        body["tools"] = TOOLS
    job_input = {"openai_route": "/v1/chat/completions", "openai_input": body}
    posts = Posts(post_s)
    await JobRun({"id": f"route-{time.monotonic_ns()}-{number}", "input": job_input}, worker, posts, pace).run()
    return max(1, posts.chunks)


async def isolation(worker: Worker, pace: Pace, *, words: int, jobs: int = 20) -> float:
    """Median milliseconds of a job of one token, whose question stands behind a system message of so many words."""
    took = []
    for number in range(jobs + 1):
        messages = [
            {"role": "system", "content": "career " * words},
            {"role": "user", "content": f"Question {number}?"},
        ]
        job_input = {"openai_route": "/v1/chat/completions", "openai_input": {"messages": messages, "max_tokens": 1}}
        job = {"id": f"isolation-{time.monotonic_ns()}", "input": job_input}
        began = time.monotonic()
        await JobRun(job, worker, Posts(0), pace).run()
        took.append(1000 * (time.monotonic() - began))
    return statistics.median(took[1:])


async def rate(call: Callable[[int], Awaitable[Any]], concurrency: int, requests: int) -> tuple[float, float]:
    """Tokens per second over all requests, and replies per request."""
    left = iter(range(requests))
    results: list[Any] = []

    async def client() -> None:
        while (number := next(left, None)) is not None:
            results.append(await call(number))

    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    replies = [result for result in results if isinstance(result, int)]
    return requests * TOKENS / (time.monotonic() - started), sum(replies) / max(1, len(replies))


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--post-ms", type=float, default=10.0, help="how long the POST of a chunk takes")
    parser.add_argument("--model")
    options = parser.parse_args()
    chosen = settings(options.model, max(options.concurrency))
    engine = await EngineStart(chosen, {}, lambda *_, **__: None).run()
    worker = Worker(chosen, engine, lambda *_, **__: None)
    pace = Pace(chosen.min_stream_gap_ms / 1000, chosen.max_stream_chunks_per_s)
    from llmpod.worker.jobs.inputs import Message, NativeRequest

    message = Message("user", QUESTION[0]["content"])
    ids = await engine.render(NativeRequest(None, (message,), {}, None, False, None, True))

    kinds: dict[str, Callable[[int], Awaitable[Any]]] = {
        "bare": lambda number: bare(engine, ids, number, stream=False),
        "bare, deltas": lambda number: bare(engine, ids, number, stream=True),
        "route": lambda number: route(worker, pace, number, stream=False, post_s=0),
        "route, streamed": lambda number: route(worker, pace, number, stream=True, post_s=options.post_ms / 1000),
        "route, streamed, with tools": lambda number: route(
            worker, pace, number, stream=True, post_s=options.post_ms / 1000, parsed=True
        ),
    }
    missed = False
    print("| concurrent | what | tokens/s, best round | of the bare engine | chunks per answer |")
    print("|---|---|---|---|---|")
    for concurrency in options.concurrency:
        requests = {1: 8, 16: 64}.get(concurrency, 2 * concurrency)
        best: dict[str, tuple[float, float]] = {}
        for call in kinds.values():
            await rate(call, concurrency, concurrency)  # warm
        for _ in range(options.rounds):
            for name, call in kinds.items():
                best[name] = max(best.get(name, (0.0, 0.0)), await rate(call, concurrency, requests))
        for name, (tokens, chunks) in best.items():
            ratio = tokens / best["bare"][0]
            print(
                f"| {concurrency} | {name} | {tokens:,.0f} | {ratio:.2f} | {chunks:.0f} |"
                if chunks
                else f"| {concurrency} | {name} | {tokens:,.0f} | {ratio:.2f} | – |",
                flush=True,
            )
        for name, target in (("route", TARGETS["whole"]), ("route, streamed", TARGETS["stream"])):
            missed |= best[name][0] / best["bare"][0] < target
    print("\n| words before the question | ms, prefix cache shared | ms, ISOLATE_PREFIX_CACHE=true |\n|---|---|---|")
    silent: Any = lambda *_, **__: None  # noqa: E731
    workers = [
        Worker(chosen.model_copy(update={"max_prompt_chars": 0, "isolate_prefix_cache": alone}), engine, silent)
        for alone in (False, True)
    ]
    for words in (10, 100, 1000):
        shared_ms, isolated_ms = [await isolation(one, pace, words=words) for one in workers]
        print(f"| {words} | {shared_ms:.1f} | {isolated_ms:.1f} |", flush=True)
    engine.shutdown()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
