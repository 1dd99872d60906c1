"""Checks of the smoke test, in the order in which they are made, and what each asks of an endpoint.

Each is one question with a yes or no, and one line that says what was seen. A check whose answer another one gives
(whether there is an endpoint at all) is not made once that one has failed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from llmpod.loadtest.intake import job_path, line, number
from llmpod.loadtest.model.answer_text import text_of
from llmpod.loadtest.model.failures import TERMINAL, error_code, error_text
from llmpod.loadtest.model.health import health_sample
from llmpod.loadtest.options import SMOKE_CHECKS, SmokeOptions
from llmpod.loadtest.run.answer import Answer
from llmpod.loadtest.run.client import CallError, Reply, RunPod, read_whole
from llmpod.loadtest.run.context import describe
from llmpod.loadtest.run.output import Reading, read_output
from llmpod.loadtest.run.sse import SseParser
from llmpod.loadtest.smoke.job_calls import CALL_S, CheckError, leave_nothing, run, status_of, submit, why

TOO_LONG = frozenset({"prompt_too_long", "context_length_exceeded"})
PARALLEL = 5


@dataclass(frozen=True, slots=True)
class Result:
    """A check's answer. `passed`: None where it was not made. `detail`: what was seen."""

    name: str
    passed: bool | None
    detail: str
    took_ms: float | None = None


@dataclass(slots=True)
class Smoke:
    """The checks against one endpoint. `facts`: what the worker says about itself: version, commit, model, revision."""

    client: RunPod
    wanted: SmokeOptions
    facts: dict[str, str] = field(default_factory=dict)

    async def run(self, tell: Callable[[Result], None]) -> list[Result]:
        """Makes every check, and hands each result to `tell` as soon as it is there."""
        results: list[Result] = []
        reachable = True
        for name, check in CHECKS.items():
            result = await self._make(name, check, reachable=reachable)
            reachable = reachable and not (name in NEEDED and result.passed is False)
            results.append(result)
            tell(result)
        if reachable:
            await self._ask_for_facts()
        return results

    async def _make(self, name: str, check: "Check", *, reachable: bool) -> Result:
        if name in self.wanted.skip:
            return Result(name, None, "left out by --skip")
        if not reachable:
            return Result(name, None, "not made: the endpoint does not answer")
        if name == "blocked" and self.wanted.blocked_prompt is None:
            return Result(name, None, "not made: give a prompt that the profile blocks with --blocked-prompt")
        began_s = perf_counter()
        try:
            detail = await check(self)
            passed = True
        except CheckError as failed:
            detail, passed = str(failed), False
        except CallError as error:
            detail, passed = f"{error.error_class}: {error.detail}", False
        return Result(name, passed, line(detail), (perf_counter() - began_s) * 1000)

    # -- the checks --

    async def reachable(self) -> str:
        reply = await self.client.call("health", "GET", "/health", timeout_s=CALL_S)
        if reply.status in (401, 403):
            raise CheckError(f"HTTP {reply.status}: the API key (RUNPOD_API_KEY) is missing or wrong")
        if reply.status == 404:
            raise CheckError("HTTP 404: there is no such endpoint")
        if reply.status >= 400:
            raise CheckError(describe(reply))
        return f"HTTP {reply.status} in {reply.took_ms:.0f} ms"

    async def health(self) -> str:
        reply = await self.client.call("health", "GET", "/health", timeout_s=CALL_S)
        sample = health_sample(reply.body)
        if sample is None or not sample["workers"] or not sample["jobs"]:
            raise CheckError(f"/health does not have the counts of jobs and workers: {describe(reply)}")
        return ", ".join(f"{name} {number}" for name, number in sample["workers"].items())

    async def cold(self) -> str:
        return await self._timed(self.wanted.cold_timeout)

    async def warm(self) -> str:
        return await self._timed(self.wanted.timeout)

    async def stream(self) -> str:
        deadline_s = perf_counter() + self.wanted.timeout
        accepted = await submit(self.client, self._native(stream=True))
        texts: list[str] = []
        reading, chunks, status = Reading(), 0, ""
        try:
            while status not in TERMINAL:
                left_s = deadline_s - perf_counter()
                if left_s <= 0:
                    raise CheckError(f"no end of the stream within {self.wanted.timeout:g} s")
                reply = await self.client.call("stream", "GET", job_path("stream", accepted), timeout_s=left_s)
                status = reply.job_status or ""
                if not status:
                    raise CheckError(describe(reply))
                pieces = reply.body.get("stream")
                pieces = pieces if isinstance(pieces, list) else []
                for piece in pieces:
                    output = piece.get("output") if isinstance(piece, dict) else piece
                    reading.take(output)
                    texts.append(text_of(output))
                    chunks += 1
                if not pieces and status not in TERMINAL:
                    await asyncio.sleep(0.05)
        finally:
            await leave_nothing(self.client, accepted, status)
        done = await status_of(self.client, accepted)
        if status != "COMPLETED":
            raise CheckError(f"{status}: {why(done)}")
        if not reading.close().content:
            raise CheckError("the stream has no text")
        joined, whole = "".join(texts), text_of(done.body.get("output"))
        if whole and joined != whole:
            raise CheckError(f"the {chunks} chunks hold {len(joined)} characters, the answer has {len(whole)} others")
        also = "join to the answer" if whole else "arrived (the status holds no answer to compare with)"
        return f"{chunks} chunks {also}: {len(joined)} characters"

    async def openai(self) -> str:
        model = self.wanted.model or await self._model() or ""
        body = chat_body(self.wanted.prompt, self.wanted.max_tokens) | {"stream": True, "model": model}
        parser, reading, events, ended = SseParser(), Reading(), 0, False
        path = "/openai/v1/chat/completions"
        opened = self.client.open_stream("openai", path, body, self.wanted.timeout, lambda _: None)
        async with opened as (response, sent_s):
            if response.status != 200:
                raw = await read_whole(response)
                raise CheckError(describe(self.client.reply(response.status, raw, sent_s, perf_counter(), None)))
            async for chunk in response.content.iter_any():
                for event in parser.feed(chunk):
                    ended = ended or event.strip() == "[DONE]"
                    reading.event(event, self.client.clean)
                    events += 1
        answer = reading.close()
        if answer.error is not None:
            raise CheckError(f"the stream says {error_text(answer.error)}")
        if not answer.content:
            raise CheckError(f"{events} events, and no text in them")
        if not ended:
            raise CheckError(f"{events} events, and the last is not [DONE]")
        return f"{events} events, [DONE]"

    async def parallel(self) -> str:
        jobs = [self._job(self._native(), self.wanted.timeout) for _ in range(PARALLEL)]
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        failed = [one for one in answers if isinstance(one, BaseException)]
        texts = [answered(one) for one in answers if not isinstance(one, BaseException)]
        if failed:
            raise CheckError(f"{len(failed)} of {PARALLEL} failed: {failed[0]}")
        return f"{len(texts)} of {PARALLEL} answered"

    async def too_long(self) -> str:
        prompt = ("word " * (self.wanted.too_long_chars // 5 + 1))[: self.wanted.too_long_chars]
        done = await run(self.client, self._native(prompt=prompt), self.wanted.timeout)
        status, code = done.job_status, error_code(done.body.get("error"))
        if status != "FAILED" or code not in TOO_LONG:
            seen = f"{status} with {code or error_text(done.body.get('error')) or 'an answer'}"
            raise CheckError(f"a prompt of {len(prompt)} characters is {seen}, not FAILED with prompt_too_long")
        return f"FAILED with {code}"

    async def blocked(self) -> str:
        done = await self._job(self._native(prompt=self.wanted.blocked_prompt), self.wanted.timeout)
        if not read_output(done.body.get("output")).blocked:
            raise CheckError("the worker answers it")
        return "blocked by the worker's policy"

    # -- what they are made of --

    def _native(self, *, prompt: str | None = None, stream: bool = False) -> dict[str, Any]:
        job = native_input(self.wanted.prompt if prompt is None else prompt, self.wanted.max_tokens)
        return {"input": {**job, "stream": True} if stream else job}

    async def _job(self, body: dict[str, Any], timeout_s: float) -> Reply:
        """The end of a job. Raises CheckError: it did not complete, or not in time."""
        done = await run(self.client, body, timeout_s)
        if done.job_status != "COMPLETED":
            raise CheckError(f"{done.job_status}: {why(done)}")
        return done

    async def _timed(self, timeout_s: float) -> str:
        done = await self._job(self._native(), timeout_s)
        times = (("queue", number(done.body.get("delayTime"))), ("execution", number(done.body.get("executionTime"))))
        parts = [f"{word} {ms / 1000:.1f} s" for word, ms in times if ms is not None]
        return answered(done) + (f" ({', '.join(parts)})" if parts else "")

    async def _model(self) -> str | None:
        """The first model that /v1/models names; None where there is no such route."""
        try:
            reply = await self.client.call("openai", "GET", "/openai/v1/models", timeout_s=self.wanted.timeout)
        except CallError:
            return None
        rows = reply.body.get("data") if isinstance(reply.body, dict) else None
        name = rows[0].get("id") if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None
        if isinstance(name, str):
            self.facts["model"] = line(name, 200)
            return name
        return None

    async def _ask_for_facts(self) -> None:
        """What the worker says about itself, where it says anything: other workers have no such route."""
        for route, names in FACTS.items():
            try:
                body = {"input": {"route": route, "method": "GET"}}
                done = await run(self.client, body, self.wanted.timeout)
            except (CheckError, CallError):
                continue
            output = done.body.get("output") if done.job_status == "COMPLETED" else None
            for name, ours in names.items():
                if isinstance(output, dict) and isinstance(output.get(name), str):
                    self.facts[ours] = line(output[name], 200)


Check = Callable[[Smoke], Awaitable[str]]
CHECKS: dict[str, Check] = {name: getattr(Smoke, name) for name in SMOKE_CHECKS}
NEEDED = frozenset({"reachable"})
FACTS = {
    "/version": {"version": "vllm"},
    "/status": {"version": "version", "commit": "commit", "model": "model", "revision": "revision"},
}
"""Routes that a worker may have, and what their answers are called in the record."""


def native_input(prompt: str, max_tokens: int) -> dict[str, Any]:
    """The input of the checks' native jobs."""
    return {"prompt": prompt, "sampling_params": {"max_tokens": max_tokens, "temperature": 0}}


def chat_body(prompt: str, max_tokens: int) -> dict[str, Any]:
    """The body of the checks' chat, but for its model."""
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}


def answered(done: Reply) -> str:
    """One line about the answer of a job. Raises CheckError: it is none."""
    answer: Answer = read_output(done.body.get("output"))
    if answer.error is not None:
        raise CheckError(f"COMPLETED, and the output says {error_text(answer.error)}")
    if answer.blocked:
        return "blocked by the worker's policy"
    if not answer.content:
        raise CheckError("COMPLETED without an answer")
    return f"{answer.output_tokens} tokens" if answer.output_tokens is not None else "an answer"
