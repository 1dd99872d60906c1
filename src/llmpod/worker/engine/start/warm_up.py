"""Warm-up: one real request for each capability that the worker serves, so that no client's job is the first.

The requests go through vLLM's application, as jobs do. A capability that fails is reported; the one that the worker is
there for, or an adapter, stops the start.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import time
import wave
from collections.abc import Awaitable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from urllib3 import encode_multipart_formdata

from llmpod.worker.engine.app.application import Application
from llmpod.worker.engine.app.asgi import App, Broken, Exchange
from llmpod.worker.engine.generation import Generation
from llmpod.worker.errors import JobError, StartError
from llmpod.worker.jobs.inputs import NativeRequest

PIXELS = 28
AUDIO_S = 0.2
SAMPLE_RATE = 16_000
LONGEST_S = 120.0
"""Time for one request of a capability that the worker can do without."""

EVERY_SAMPLER = {
    "temperature": 0.9,
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.1,
    "seed": 1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.2,
    "logit_bias": {0: 0.5},
    "logprobs": 1,
}
"""Sampling parameters whose first use initialises something in the engine."""

_HELLO = NativeRequest("Hello", None, {}, None, False, None, True)


@dataclass(frozen=True)
class Trial:
    """One request. `required`: the start fails with it; `setting`: what to look at then."""

    capability: str
    path: str
    body: bytes
    content_type: str = "application/json"
    required: bool = False
    setting: str | None = None


@dataclass(frozen=True)
class Result:
    """How a request of a capability went. `error`: what was answered instead."""

    capability: str
    ms: float
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As the `warm_up` event and the status show it."""
        return {"ok": self.error is None, "ms": self.ms} | ({"error": self.error} if self.error else {})


def capabilities(application: Application, *, generates: bool) -> dict[str, bool]:
    """What the worker can be asked for: vLLM mounts a route where the model can do it."""
    paths, modalities = application.paths, application.modalities
    return {
        "generate": generates and "/v1/completions" in paths,
        "embed": "/v1/embeddings" in paths,
        "score": "/score" in paths,
        "classify": "/classify" in paths,
        "vision": "image" in modalities,
        "audio": "audio" in modalities or "/v1/audio/transcriptions" in paths,
        "tools": generates and application.calls_tools,
        "reasoning": generates and application.reads_reasoning,
    }


def trials(can: Mapping[str, bool], paths: Collection[str], model: str, adapters: Iterable[str]) -> list[Trial]:
    """The requests for a worker with these capabilities, beside plain generation, which the engine tries itself."""
    found = []
    if can["generate"]:
        for name in adapters:
            body = orjson.dumps({"model": name, "prompt": "Hello", "max_tokens": 1})
            found.append(Trial(f"lora:{name}", "/v1/completions", body, required=True, setting="LORA_MODULES"))
        if can["vision"] and "/v1/chat/completions" in paths:
            address = "data:image/png;base64," + base64.b64encode(image()).decode()
            parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Hello"}]
            body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 1})
            found.append(Trial("vision", "/v1/chat/completions", body))
    else:
        for capability, path, fields in (
            ("embed", "/v1/embeddings", ("input",)),
            ("classify", "/classify", ("input",)),
            ("score", "/score", ("queries", "documents")),
        ):
            if can[capability]:
                body = orjson.dumps({"model": model} | dict.fromkeys(fields, "Hello"))
                found.append(Trial(capability, path, body, required=not found))
    if "/v1/audio/transcriptions" in paths:
        form = (("model", model), ("file", ("silence.wav", silence(), "audio/wav")))
        body, kind = encode_multipart_formdata(form)
        found.append(Trial("audio", "/v1/audio/transcriptions", body, kind, required=not can["generate"]))
    return found


async def run(app: App, wanted: Iterable[Trial], longest_s: float = LONGEST_S) -> list[Result]:
    """Make the requests, one after the other.

    Raises:
        StartError: a required one failed.
    """
    results = []
    for trial in wanted:
        result = await timed(trial.capability, _attempt(app, trial, None if trial.required else longest_s))
        if result.error is not None and trial.required:
            raise StartError(
                f"The model was loaded, but a first request ({trial.capability}, {trial.path}) failed: {result.error}",
                "Correct the setting." if trial.setting else "Use another model, or another RUNNER for it.",
                setting=trial.setting or "MODEL_NAME",
            )
        results.append(result)
    return results


async def generate(generation: Generation) -> None:
    """Run real generations, so that the first job does not pay for initialisation.

    The last one also fixes the engine's structured output backend, before a client does.
    """
    for given in ({}, EVERY_SAMPLER, {"structured_outputs": {"json_object": True}}):
        try:
            await _generate(generation, generation.sampling(given, 2, stream=False))
        except JobError:
            if not given:  # excluded by this model or its configuration, for jobs too
                raise


async def compile_form(generation: Generation, task: str, form: Mapping[str, Any]) -> None:
    """Compile the structured output of a task, and generate two tokens with it, so that no job pays for it.

    Raises:
        StartError: the engine cannot follow it within the limits.
    """
    try:
        params = generation.sampling(form, 2, stream=False)
        await generation.constrain(params)
        await _generate(generation, params)
    except JobError as error:
        cause = error.message.removeprefix("sampling_params.structured_outputs: ")
        raise StartError(f"Task {task} of the profile: {cause}", "Correct its schema.", setting="PROFILE") from None


async def _generate(generation: Generation, params: Any) -> None:
    ids = await generation.render(_HELLO)
    async with contextlib.aclosing(generation.generate(ids, params, "warm-up")) as steps:
        async for _ in steps:
            pass


async def timed(capability: str, attempt: Awaitable[str | None]) -> Result:
    """The result of an attempt, which returns what went wrong."""
    began = time.monotonic()
    error = await attempt
    return Result(capability, round((time.monotonic() - began) * 1000, 1), error)


async def _attempt(app: App, trial: Trial, longest_s: float | None) -> str | None:
    headers = {"content-type": trial.content_type, "x-request-id": f"warm-up-{trial.capability}"}
    try:
        async with (
            asyncio.timeout(longest_s),
            Exchange(app, "POST", trial.path, headers=headers, body=trial.body) as exchange,
        ):
            await exchange.started()
            answer = await exchange.whole()
    except TimeoutError:
        return f"no answer within {longest_s:g} s"
    except Broken as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"[:300]
    return None if exchange.status < 300 else _message(answer, exchange.status)


def _message(answer: bytes, status: int) -> str:
    """The message in an error that vLLM answered, in any of its forms."""
    try:
        body = orjson.loads(answer)
        error = body.get("error")
        said = error.get("message") if isinstance(error, dict) else body.get("detail") or body.get("message")
    except (orjson.JSONDecodeError, AttributeError):
        said = None
    return f"HTTP {status}: {said}"[:300] if said else f"HTTP {status}"


def image() -> bytes:
    """A grey image of PIXELS by PIXELS, as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (PIXELS, PIXELS), 128).save(file, "PNG")
    return file.getvalue()


def silence() -> bytes:
    """AUDIO_S of silence, as WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(bytes(2 * int(SAMPLE_RATE * AUDIO_S)))
    return file.getvalue()
