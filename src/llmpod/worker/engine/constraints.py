"""Constraint compiler client: compiles structured outputs in a separate process before the engine gets them.

The time that a regex, a grammar or a schema takes to compile does not follow from its length, and neither the engine
nor vLLM's check of its parameters, which runs in the worker's event loop, can be interrupted. So each constraint is
compiled once in another process (constraint_process.py), which is killed when it exceeds its limits. Results are
cached: a schema that is sent with every job is compiled once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import socket
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llmpod.worker.engine import constraint_process
from llmpod.worker.errors import Code, JobError

MAX_VERDICTS = 1000
"""Size of the cache of verdicts."""
MEMORY_BYTES = 1 << 29
"""Memory limit of one compilation. The engine's copy of the result needs at most as much."""
PATIENCE_S = 60.0
"""Longest wait for a verdict, including the start of the process and its queue."""
MAX_LINE_BYTES = 1 << 26


@dataclass(frozen=True)
class Verdict:
    """Result for a constraint. `fields`: those of StructuredOutputsParams that vLLM's check changes."""

    fields: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None
    auto: bool = False  # vLLM chose the backend
    refused: str | None = None  # why it is not compiled
    busy: bool = False  # temporary: there was no time or memory for it


async def begun_within(seconds: float, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Limit the time to the first output of a request with a constraint, which the engine compiles once more.

    `seconds`: the longest wait for the first output; 0 waits for ever.

    Raises:
        JobError: generation_failed, and the request has left the engine.
    """
    async with aclosing(outputs):
        try:
            async with asyncio.timeout(seconds or None):
                first = await anext(outputs, None)
        except TimeoutError:
            message = f"The engine was not ready to follow the job's structured output within {seconds:g} s."
            raise JobError(Code.GENERATION_FAILED, message) from None
        if first is not None:
            yield first
        async for output in outputs:
            yield output


class ConstraintCompiler:
    """Checks whether the engine can follow a constraint within the limits."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: MAX_CONSTRAINT_SECONDS, of processor time."""
        self._seconds = seconds
        self._config: Any = None
        self._process: Any = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Verdict]] = {}
        self._running: dict[str, asyncio.Task[Verdict]] = {}
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self._starting = asyncio.Lock()
        self._number = 0

    async def start(self, config: Any) -> None:
        """Start the process; it initialises in the background. `config`: vLLM's VllmConfig."""
        self._config = config
        ours, theirs = socket.socketpair()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(
            target=constraint_process.serve, args=(theirs, config, self._seconds, MEMORY_BYTES), daemon=True
        )
        self._process.start()
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        self._reading = asyncio.create_task(self._read(reader))

    def shutdown(self) -> None:
        """End the process. May be called at any time."""
        if self._reading is not None:
            with contextlib.suppress(RuntimeError):  # its loop may have ended before
                self._reading.cancel()
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):
                self._writer.close()
            self._writer = None
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def check(self, constraint: dict[str, Any], *, field: str) -> Verdict:
        """Compile a constraint, or return the cached result.

        `constraint`: the fields of vLLM's StructuredOutputsParams that are set. Takes a few milliseconds where the
        verdict is known or the constraint is simple. Several jobs with the same constraint wait for one compilation.

        Raises:
            JobError: it cannot be compiled within the limits (`field` names it), or the process was busy.
        """
        key = hashlib.sha256(json.dumps(constraint, sort_keys=True).encode()).hexdigest()
        verdict = self._verdicts.get(key)
        if verdict is None:
            if key not in self._running:
                task = self._running[key] = asyncio.create_task(self._compile(key, constraint))
                task.add_done_callback(lambda _: self._running.pop(key, None))
            verdict = await asyncio.shield(self._running[key])
        else:
            self._verdicts.move_to_end(key)
        if verdict.busy:
            raise JobError(Code.OVERLOADED, f"{field} waited too long to be compiled: others were before it.")
        if verdict.refused is not None:
            message = f"{field}: the engine cannot follow this structured output: {verdict.refused.rstrip('.')}."
            raise JobError(Code.INVALID_INPUT, message, field=field)
        return verdict

    async def apply(self, outputs: Any, field: str) -> None:
        """Check a request's StructuredOutputsParams and set their fields as vLLM's own check would.

        Raises:
            JobError: the engine could not follow them within the limits; `field` is theirs.
        """
        given = {name: value for name, value in vars(outputs).items() if value is not None and not name.startswith("_")}
        verdict = await self.check(given, field=field)
        for name, value in verdict.fields.items():
            setattr(outputs, name, value)
        outputs._backend, outputs._backend_was_auto = verdict.backend, verdict.auto

    async def _compile(self, key: str, constraint: dict[str, Any]) -> Verdict:
        """Send the constraint to the process; restarts it if it has ended."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(2):
                    with contextlib.suppress(ConnectionError):
                        verdict = await self._ask(constraint)
                        if not verdict.busy:
                            self._verdicts[key] = verdict
                            while len(self._verdicts) > MAX_VERDICTS:
                                self._verdicts.popitem(last=False)
                        return verdict
        except TimeoutError:
            pass
        return Verdict(busy=True)

    async def _ask(self, constraint: dict[str, Any]) -> Verdict:
        async with self._starting:
            if self._reading is None or self._reading.done():
                self.shutdown()
                await self.start(self._config)
        assert self._writer is not None
        self._number += 1
        number = self._number
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._writer.write(json.dumps({"id": number, "constraint": constraint}).encode() + b"\n")
            await self._writer.drain()
            return await answer
        finally:
            del self._asked[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                fields = json.loads(line)
                answer = self._asked.get(fields.pop("id"))
                if answer is not None and not answer.done():
                    answer.set_result(Verdict(**fields))
        finally:
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the process has ended"))
