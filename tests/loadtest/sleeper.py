"""A worker for the local endpoint whose jobs take exactly as long as their input says: sleep_ms, or a stream of
words."""

import asyncio
import json
import os

import runpod


async def answer(job):
    asked = job["input"]
    await asyncio.sleep(asked.get("sleep_ms", 50) / 1000)
    if asked.get("fail"):
        raise RuntimeError("told to fail")
    return {
        "choices": [{"index": 0, "text": "slept", "finish_reason": "stop"}],
        "usage": {"input": 3, "output": 20, "total": 23},
    }


async def stream(job):
    asked = job["input"]
    if "openai_route" in asked:
        for word in ("one ", "two ", "three "):
            await asyncio.sleep(0.03)
            yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}) + "\n\n"
        yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + "\n\n"
        yield "data: " + json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}) + "\n\n"
        yield "data: [DONE]\n\n"
        return
    for word in ("one ", "two ", "three "):
        await asyncio.sleep(0.03)
        yield {"choices": [{"index": 0, "text": word}]}
    yield {
        "choices": [{"index": 0, "text": "", "finish_reason": "stop"}],
        "usage": {"input": 3, "output": 3, "total": 6},
    }


if __name__ == "__main__":
    concurrency = int(os.environ.get("CONCURRENCY", "1"))
    runpod.serverless.start(
        {
            "handler": stream if os.environ.get("STREAM") else answer,
            "concurrency_modifier": lambda current: concurrency,
        }
    )
