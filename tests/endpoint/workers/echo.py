"""A worker that does what a job's input asks for; CONCURRENCY, STREAM and AGGREGATE in the environment shape it.

Input: {"echo": any, "sleep_ms": n, "fail": text, "error": any, "exit": code, "size": bytes, "refresh_worker": bool,
"ignore_cancel": bool, "block_ms": n, "nan": bool, "note": path, "progress": any}; as a stream: {"chunks": n,
"pause_ms": n, "chunk_size": bytes, "fail_at": n, "exit_at": n, "echo": any}.
"""

import asyncio
import json
import os
import time
from pathlib import Path

import runpod


def write_note(path, text):
    with Path(path).open("a") as notes:
        notes.write(f"{text}\n")


async def answer(job):
    asked = job["input"]
    if path := asked.get("note"):
        write_note(path, job["id"])
    if "progress" in asked:
        runpod.serverless.progress_update(job, asked["progress"])
    if "exit" in asked:
        os._exit(asked["exit"])
    if "fail" in asked:
        raise RuntimeError(asked["fail"])
    if block_ms := asked.get("block_ms"):
        time.sleep(block_ms / 1000)  # noqa: ASYNC251 -- a handler that blocks its loop is what is wanted
    try:
        await asyncio.sleep(asked.get("sleep_ms", 0) / 1000)
    except asyncio.CancelledError:
        if not asked.get("ignore_cancel"):
            raise
    if "error" in asked:
        return {"error": asked["error"], "partial": True}
    if asked.get("refresh_worker"):
        return {"refresh_worker": True, "echo": asked.get("echo")}
    if asked.get("nan"):
        return {"value": float("nan")}
    if size := asked.get("size"):
        return {"text": "x" * size}
    if "openai_route" in asked:
        return openai_answer(asked)
    return {"echo": asked.get("echo"), "id": job["id"], "job": {key: job[key] for key in job if key != "input"}}


def openai_answer(asked):
    if asked["openai_route"] == "/v1/models":
        return {"object": "list", "data": [{"id": "echo", "object": "model", "created": 1, "owned_by": "tests"}]}
    body = asked["openai_input"]
    said = body["messages"][-1]["content"]
    if said == "fail":
        raise RuntimeError("told to fail")
    return [completion({"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}, "chat.completion")]


def completion(choice, kind):
    return {"id": "c1", "object": kind, "created": 1, "model": "echo", "choices": [{"index": 0, **choice}]}


async def stream(job):
    asked = job["input"]
    if "openai_route" in asked:
        async for piece in openai_stream(asked):
            yield piece
        return
    for number in range(asked.get("chunks", 3)):
        await asyncio.sleep(asked.get("pause_ms", 0) / 1000)
        if "fail_at" in asked and number == asked["fail_at"]:
            raise RuntimeError("told to fail")
        if "exit_at" in asked and number == asked["exit_at"]:
            os._exit(3)
        yield "x" * asked["chunk_size"] if "chunk_size" in asked else {"n": number, "echo": asked.get("echo")}


async def openai_stream(asked):
    if not asked.get("openai_input", {}).get("stream"):
        yield openai_answer(asked)[0] if "openai_input" in asked else openai_answer(asked)
        return
    said = asked["openai_input"]["messages"][-1]["content"]
    if said == "fail":
        raise RuntimeError("told to fail")
    for word in said.split(" "):
        await asyncio.sleep(0.02)
        if word == "break":
            raise RuntimeError("told to break")
        choice = {"delta": {"content": word + " "}, "finish_reason": None}
        yield f"data: {json.dumps(completion(choice, 'chat.completion.chunk'))}\n\n"
    yield "data: [DONE]\n\n"


if __name__ == "__main__":
    concurrency = int(os.environ.get("CONCURRENCY", "8"))
    runpod.serverless.start(
        {
            "handler": stream if os.environ.get("STREAM") else answer,
            "return_aggregate_stream": bool(os.environ.get("AGGREGATE")),
            "concurrency_modifier": lambda current: concurrency,
            "refresh_worker": bool(os.environ.get("REFRESH")),
        }
    )
