"""Warm-up of what a worker serves: which requests are made, and what their failures mean."""

from __future__ import annotations

import asyncio
import io
import json
import types
import wave
from typing import Any

import pytest
from PIL import Image

from llmpod.worker.engine.start import warm_up
from llmpod.worker.engine.start.warm_up import Trial
from llmpod.worker.errors import StartError

GENERATING = ("/v1/completions", "/v1/chat/completions")
POOLING = ("/v1/embeddings", "/score", "/pooling")


def application(paths: tuple[str, ...], modalities: tuple[str, ...] = (), **more: Any) -> Any:
    fields = {"paths": frozenset(paths), "modalities": frozenset(modalities), "calls_tools": False}
    return types.SimpleNamespace(**fields | {"reads_reasoning": False} | more)


@pytest.mark.parametrize(
    ("paths", "modalities", "adapters", "expected"),
    [
        (GENERATING, (), (), []),
        (GENERATING, (), ("a", "b"), [("lora:a", True), ("lora:b", True)]),
        (GENERATING, ("image", "video"), (), [("vision", False)]),
        (("/v1/completions",), ("image",), (), []),  # no chat route, no way to show it one
        ((*GENERATING, "/v1/audio/transcriptions"), ("audio",), (), [("audio", False)]),
        (("/v1/audio/transcriptions",), ("audio",), (), [("audio", True)]),
        (POOLING, (), ("a",), [("embed", True), ("score", False)]),
        (("/classify", "/score"), (), (), [("classify", True), ("score", False)]),
        (("/pooling",), (), (), []),
    ],
)
def test_each_capability_gets_a_request_and_the_first_must_succeed(
    paths: tuple[str, ...], modalities: tuple[str, ...], adapters: tuple[str, ...], expected: list[tuple[str, bool]]
) -> None:
    can = warm_up.capabilities(application(paths, modalities), generates="/v1/completions" in paths)
    found = warm_up.trials(can, paths, "m", adapters)
    assert [(trial.capability, trial.required) for trial in found] == expected
    assert {trial.path for trial in found} <= set(paths)


def test_the_capabilities_are_what_the_routes_and_the_model_give() -> None:
    can = warm_up.capabilities(application(GENERATING, ("image",), calls_tools=True), generates=True)
    assert can == {
        **dict.fromkeys(("generate", "vision", "tools"), True),
        **dict.fromkeys(("embed", "score", "classify", "audio", "reasoning"), False),
    }


def app(status: int, body: bytes, *, hangs: bool = False, breaks: bool = False) -> Any:
    async def call(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if hangs:
            await receive()
            return
        if breaks:
            raise RuntimeError("nobody foresaw this")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return call


REQUIRED = Trial("embed", "/v1/embeddings", b"{}", required=True)
OPTIONAL = Trial("vision", "/v1/chat/completions", b"{}")
FAILURES = [
    (app(500, b'{"error": {"message": "no kernel"}}'), "HTTP 500: no kernel"),
    (app(400, b'{"detail": "bad"}'), "HTTP 400: bad"),
    (app(503, b"busy"), "HTTP 503"),
    (app(404, b"[]"), "HTTP 404"),
    (app(200, b"", breaks=True), "RuntimeError: nobody foresaw this"),
    (app(200, b"", hangs=True), "no answer within 0.1 s"),
]


@pytest.mark.parametrize(("served", "error"), FAILURES)
async def test_a_capability_that_fails_is_reported(served: Any, error: str) -> None:
    [result] = await warm_up.run(served, [OPTIONAL], longest_s=0.1)
    assert result.as_dict()["ok"] is False
    assert result.as_dict()["error"] == error


@pytest.mark.parametrize(("served", "error"), FAILURES[:-1])
async def test_the_capability_that_the_worker_is_there_for_stops_the_start(served: Any, error: str) -> None:
    with pytest.raises(StartError, match=r"first request \(embed, /v1/embeddings\) failed") as caught:
        await warm_up.run(served, [REQUIRED])
    assert error in caught.value.cause
    assert caught.value.cure


async def test_a_capability_that_works_has_its_time() -> None:
    [result] = await warm_up.run(app(200, b"{}"), [REQUIRED])
    assert result.as_dict() == {"ok": True, "ms": result.ms}


async def test_a_failed_one_does_not_keep_the_next_from_its_request() -> None:
    asked = []

    async def call(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await app(500 if len(asked) == 1 else 200, b"{}")(scope, receive, send)

    results = await warm_up.run(call, [OPTIONAL, REQUIRED])
    assert [result.error for result in results] == ["HTTP 500", None]
    assert asked == [OPTIONAL.path, REQUIRED.path]


async def test_a_cancelled_start_ends_its_warm_up() -> None:
    task = asyncio.create_task(warm_up.run(app(200, b"", hangs=True), [REQUIRED]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_image_and_silence_are_files_that_others_read() -> None:
    assert Image.open(io.BytesIO(warm_up.image())).size == (warm_up.PIXELS, warm_up.PIXELS)
    with wave.open(io.BytesIO(warm_up.silence())) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(warm_up.AUDIO_S)


def test_the_recording_is_sent_as_a_form() -> None:
    [trial] = warm_up.trials(
        {"generate": False, "embed": False, "classify": False, "score": False}, ["/v1/audio/transcriptions"], "m", ()
    )
    assert trial.content_type.startswith("multipart/form-data; boundary=")
    boundary = trial.content_type.rpartition("=")[2].encode()
    parts = trial.body.split(b"--" + boundary)
    assert parts[-1] == b"--\r\n"
    assert b'name="model"\r\n\r\nm\r\n' in parts[1]
    assert parts[2].endswith(warm_up.silence() + b"\r\n")
    assert json.dumps(trial.capability) == '"audio"'
