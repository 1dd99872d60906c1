"""Constraint compiler process: forks a child per constraint and kills it when it exceeds its CPU or memory limit.

A child does what vLLM does with a structured output, with vLLM's own code: it checks the parameters, compiles with the
engine's backend, and generates some tokens of an answer. The kernel enforces its limits of processor time and memory,
also inside native code.

There are two lanes. A constraint first gets a short limit of processor time, which is enough for nearly all. One that
needs more starts again in the slow lane, one at a time: however many costly ones arrive, each delays the others by the
short limit only. Imports vllm when it runs, like the engine's modules.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

QUICK_S = 0.25
"""Processor time of the first try, in seconds."""
QUICK_CHILDREN = 2
MAX_WAITING = 64
"""Most constraints that wait in either lane; further ones are refused."""
WALL_FACTOR = 10
"""A child is also killed after this many times its limit in wall time."""
REHEARSED_TOKENS = 128

Json = dict[str, Any]

TOO_LONG = {"refused": "it takes too long to compile; counted repetitions such as maxLength cost most"}
TOO_LARGE = {"refused": "it takes too much memory to compile"}
BUSY = {"busy": True}


@dataclass
class Lane:
    """Constraints that are compiled with the same limit, `most` at a time."""

    cpu_s: float
    most: int
    waiting: deque[Json] = field(default_factory=deque)


@dataclass
class Child:
    """A running compilation; `end` is its deadline in monotonic seconds."""

    pid: int
    asked: Json
    lane: Lane
    end: float
    received: bytearray = field(default_factory=bytearray)


def serve(connection: socket.socket, config: Any, seconds: float, memory_bytes: int) -> None:
    """Answer requests until the connection ends: one line of JSON for each line of JSON.

    `config`: vLLM's VllmConfig. `seconds`: MAX_CONSTRAINT_SECONDS. `memory_bytes`: what a child may take for itself.
    """
    logging.disable(logging.CRITICAL)
    os.nice(5)
    judge = Judge(config)
    gc.freeze()
    Server(connection, judge, seconds, memory_bytes).run()


class Judge:
    """Checks and compiles structured outputs with vLLM's code, without an engine."""

    def __init__(self, config: Any) -> None:
        """`config`: a VllmConfig."""
        from vllm.v1.structured_output import StructuredOutputManager

        self._config = config
        self._manager = StructuredOutputManager(config)
        self._manager._use_async_grammar_compilation = False
        self._special = frozenset(getattr(self._manager.tokenizer, "all_special_ids", ()))
        self.backend = self._compile({"json_object": True})[0].structured_outputs._backend

    def verdict(self, constraint: Json) -> Json:
        """Compile a constraint. Returns it as vLLM's check leaves it, or the reason for its refusal.

        vLLM's engine has one backend, that of its first request; what needs another is refused.
        """
        try:
            params, grammar = self._compile(constraint)
            self._rehearse(grammar)
        except MemoryError:
            return TOO_LARGE
        except Exception as error:  # noqa: BLE001 - whatever the backend raises is the verdict
            reason = str(error).strip().split(" Pattern: ")[0]
            return (
                TOO_LARGE
                if "bad_alloc" in reason
                else {"refused": reason.split("\n")[0][:500] or "it does not compile"}
            )
        checked = params.structured_outputs
        now = {name: value for name, value in vars(checked).items() if not name.startswith("_")}
        changed = {name: value for name, value in now.items() if value != constraint.get(name)}
        return {"fields": changed, "backend": checked._backend, "auto": checked._backend_was_auto}

    def _compile(self, constraint: Json) -> tuple[Any, Any]:
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams
        from vllm.v1.structured_output.request import StructuredOutputRequest

        params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint))
        config, manager = self._config, self._manager
        params.verify(config.model_config, None, config.structured_outputs_config, manager.tokenizer)
        needed = params.structured_outputs._backend
        if manager.backend is not None and needed != self.backend:
            raise ValueError(f"it needs the backend {needed}, and this worker's is {self.backend}")
        structured = StructuredOutputRequest.from_sampling_params(params)
        request: Any = SimpleNamespace(request_id="", sampling_params=params, structured_output_request=structured)
        manager.grammar_init(request)
        assert structured is not None
        grammar = structured.grammar
        if isinstance(grammar, Exception):
            raise grammar
        return params, grammar

    def _rehearse(self, grammar: Any) -> None:
        """Generate a random answer: a grammar may compile at once, and cost seconds at every generated token."""
        backend = self._manager.backend
        assert backend is not None
        mask = backend.allocate_token_bitmask(1)
        chance = random.Random(0)  # noqa: S311 - the same verdict every time
        for number in range(REHEARSED_TOKENS):
            if grammar.is_terminated():
                return
            grammar.fill_bitmask(mask, 0)
            words = mask[0].numpy()
            allowed = [int(index) for index in words.nonzero()[0]]
            if not allowed:
                if number:  # no token fits; another answer may not reach this state
                    return
                raise ValueError("no token of the model satisfies it")
            for _ in range(10):  # prefer a token that does not end the answer
                index = chance.choice(allowed)
                token = index * 32 + chance.choice([bit for bit in range(32) if int(words[index]) >> bit & 1])
                if token not in self._special:
                    break
            if not grammar.accept_tokens("", [token]):
                return


class Server:
    """Schedules the child processes. One thread, no locks."""

    def __init__(self, connection: socket.socket, judge: Any, seconds: float, memory_bytes: int) -> None:
        """`judge`: its `verdict` runs in the children."""
        self._connection = connection
        self._judge = judge
        self._memory_bytes = memory_bytes
        self._quick = Lane(min(QUICK_S, seconds), QUICK_CHILDREN)
        self._slow = Lane(seconds, 1)
        self._children: dict[int, Child] = {}
        self._unread = bytearray()

    def run(self) -> None:
        """Serve until the connection ends; kills all children then."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        try:
            while True:
                for lane in (self._quick, self._slow):
                    while lane.waiting and sum(child.lane is lane for child in self._children.values()) < lane.most:
                        poll.register(self._fork(lane, lane.waiting.popleft()), select.POLLIN)
                for number, _ in poll.poll(self._patience_ms()):
                    if number == self._connection.fileno():
                        if not self._read():
                            return
                    elif not self._receive(number):
                        poll.unregister(number)
                        os.close(number)
                self._end_the_late()
        finally:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)

    def _patience_ms(self) -> float | None:
        ends = [child.end for child in self._children.values()]
        return max(0.0, (min(ends) - time.monotonic()) * 1000) if ends else None

    def _read(self) -> bool:
        data = self._connection.recv(1 << 20)
        self._unread += data
        while (end := self._unread.find(b"\n")) >= 0:
            self._put(self._quick, json.loads(self._unread[:end]))
            del self._unread[: end + 1]
        return bool(data)

    def _put(self, lane: Lane, asked: Json) -> None:
        if len(lane.waiting) < MAX_WAITING:
            lane.waiting.append(asked)
        else:
            self._answer(asked, BUSY)

    def _answer(self, asked: Json, verdict: Json) -> None:
        self._connection.sendall(json.dumps({"id": asked["id"]} | verdict).encode() + b"\n")

    def _fork(self, lane: Lane, asked: Json) -> int:
        """Fork a child; returns the descriptor from which its verdict is read."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._compile(asked, writing, lane.cpu_s)
        os.close(writing)
        self._children[reading] = Child(pid, asked, lane, time.monotonic() + WALL_FACTOR * lane.cpu_s)
        return reading

    def _compile(self, asked: Json, writing: int, cpu_s: float) -> None:
        """Body of the child process."""
        try:
            silence = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(silence, number)
            has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (has + self._memory_bytes,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            verdict = json.dumps(self._judge.verdict(asked["constraint"])).encode()
            with open(writing, "wb") as file:
                file.write(verdict)
        finally:
            os._exit(0)

    def _receive(self, number: int) -> bool:
        """Read from a child. Returns whether it is still running; if not, its verdict has been sent."""
        child = self._children[number]
        data = os.read(number, 1 << 20)
        child.received += data
        if data:
            return True
        del self._children[number]
        _, status = os.waitpid(child.pid, 0)
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if child.received and ended_by is None:
            self._answer(child.asked, json.loads(child.received))
        elif ended_by in (signal.SIGPROF, signal.SIGKILL) and child.lane is self._quick:
            self._put(self._slow, child.asked)
        elif ended_by == signal.SIGPROF:
            self._answer(child.asked, TOO_LONG)
        elif ended_by == signal.SIGKILL:  # by us, or for lack of memory: not necessarily the constraint's fault
            self._answer(child.asked, BUSY)
        else:
            self._answer(child.asked, TOO_LARGE)
        return False

    def _end_the_late(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.end <= now:
                os.kill(child.pid, signal.SIGKILL)
                child.end = now + 1
