"""The worker's HTTP server beside vLLM's own (`vllm serve`): same engine settings, same client, same machine, one run.

    python bench/http_server.py               1, 16, 64 and 128 clients; both servers are started four times
    python bench/http_server.py --quick       1, 16 and 128 clients, one start, half the requests

Chat answers of 128 tokens, whole and streamed, with and without a tool that a parser looks for. Both servers run at the
same time; the one that is not measured is stopped (SIGSTOP), so it takes no processor, and which is measured first
alternates. Two processes of one server differ by some percent for as long as they live, and of equal servers the one
started first is the slowest; so both are started several times, by turns as the first. Figures are the medians of the
starts, and beside the median of their ratios stand the least and the greatest.
"CPU" is user and system time of the server's own process (/proc), without its engine's, per generated token: what HTTP,
tokenising, parsing and writing events cost.
The worker applies its guardrails and writes two log lines per request; vLLM's access log is off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "src" / "llmpod" / "worker" / "demo_model"
TOKENS = 128
SLOTS = 128
ENGINE = {
    "max-num-seqs": str(SLOTS),
    "max-num-batched-tokens": "4096",
    "dtype": "float32",
    "tool-call-parser": "hermes",
}
"""Engine arguments of both servers, beside those that follow from a CPU without compilation. The prompts of all slots
fit one step: where a step's budget cuts the prompt of a request with a seed, vLLM's engine dies on a CPU."""
VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Environment variables of both."""
KEEP_ALIVE = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75"}
"""As llmpod's. vLLM's is 5 s, and uvloop closes a connection whose time is over before it reads what has arrived on it:
a machine that stands still between two requests costs the second one."""
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
SERVERS = ("llmpod", "vllm serve")
REQUESTS = {1: 8, 16: 64, 64: 128, 128: 256}
START_S = 180.0
LOG_TAIL = 3000
"""Characters of a server's log that are shown when something fails."""


@dataclass
class Figures:
    """One server in one cell of the table."""

    tokens_per_s: float
    ttft_ms: list[float]
    cpu_us_per_token: float
    chunks: int = 0


Cell = tuple[int, bool, bool]
"""Clients, whether answers are streamed, whether there is a tool."""


@dataclass
class Server:
    """A running server. `process` is its own; its engine's processes are the children."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    found: dict[Cell, Figures] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """User and system time of the server's own processes so far."""
        return own_cpu_s(self.process.pid)

    def said(self) -> str:
        """The end of its log, and whether it still runs."""
        status = self.process.poll()
        text = self.log.read_text(errors="replace")[-LOG_TAIL:]
        return f"--- {self.name}: {'running' if status is None else f'exited with {status}'}\n{text}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and everything it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.send(signal.SIGKILL)


def own_cpu_s(session: int) -> float:
    """User and system time of a session's processes, without its engine's, which vLLM forks or spawns."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and not _ENGINES.search(stat.with_name("cmdline").read_bytes()):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


_ENGINES = re.compile(rb"multiprocessing|^VLLM::")


def end_workers_when_terminated() -> None:
    """On SIGTERM end what was started, in `finally` blocks: left running, it would slow whatever is measured next."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def vllm_named() -> str:
    """A folder in which the CPU build, which is named vllm-cpu, has the name that `vllm serve` asks for."""
    folder = Path(tempfile.mkdtemp(prefix="bench-names-"))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("vllm-cpu")
        (folder / f"vllm-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        (folder / f"vllm-{version}.dist-info" / "METADATA").write_text(metadata)
    return str(folder)


def start(name: str, log: Path) -> Server:
    """Start a server; `log` gets what it prints."""
    port = free_port()
    variables = os.environ | VARIABLES
    if name == "llmpod":
        command = [sys.executable, "-u", str(REPOSITORY / "handler.py")]
        named = {argument.replace("-", "_").upper(): value for argument, value in ENGINE.items()}
        variables |= named | {
            "SERVE_MODE": "http",
            "PORT": str(port),
            "MODEL_NAME": str(MODEL),
            "SERVED_MODEL_NAME": "demo",
            "MAX_TOKENS_MAX": str(TOKENS),
            "ENGINE_STALL_SECONDS": "0",  # it is stopped while the other one is measured
        }
    else:
        command = [sys.executable, "-c", "from vllm.entrypoints.cli.main import main; main()", "serve", str(MODEL)]
        command += [f"--{argument}={value}" for argument, value in ENGINE.items()]
        command += ["--served-model-name=demo", "--enforce-eager", "--enable-auto-tool-choice", f"--port={port}"]
        command += ["--host=127.0.0.1", "--disable-uvicorn-access-log"]
        variables |= {"PYTHONPATH": vllm_named(), "VLLM_LOGGING_LEVEL": "ERROR"} | KEEP_ALIVE
    process = subprocess.Popen(
        command, env=variables, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True
    )
    return Server(name, process, port, log)


def await_ready(server: Server) -> None:
    """Wait until /health answers 200."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        url = f"http://127.0.0.1:{server.port}/health"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{server.name} did not start:\n{server.said()}")


class RequestError(Exception):
    """A request was not answered as it should be."""


class Client:
    """A keep-alive connection that sends one chat request after another."""

    def __init__(self, port: int, *, stream: bool, tools: bool) -> None:
        self._port = port
        body: dict[str, Any] = {
            "model": "demo",
            "messages": [{"role": "user", "content": "How do I prepare for a job interview?"}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": 0.8,
        }
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body |= {"tools": [TOOL]} if tools else {}
        self._stream = stream
        self._body = body
        self.chunks = 0  # of all answers, [DONE] among them

    async def run(self, numbers: Any, ttft_ms: list[float]) -> None:
        """Send a request for each number, and check each answer.

        Raises:
            RequestError: an answer is missing, cut or not what was asked for.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        ended, answers = time.monotonic(), 0
        for number in numbers:
            began = time.monotonic()
            try:
                await self._ask(reader, writer, number, ttft_ms)
            except (OSError, EOFError, AssertionError) as error:
                idle_s, waited_s = began - ended, time.monotonic() - began
                message = f"{error!r} {waited_s:.3f} s after a request was sent on a connection that had been idle for "
                raise RequestError(f"{message}{idle_s:.3f} s, after {answers} answers") from error
            ended, answers = time.monotonic(), answers + 1
        writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, ttft_ms: list[float]
    ) -> None:
        content = json.dumps(self._body | {"seed": number}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        began = time.monotonic()
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in answer[:20], answer
        if self._stream:
            await reader.readuntil(b"data: ")
            ttft_ms.append(1000 * (time.monotonic() - began))
            said = await reader.readuntil(b"\r\n0\r\n\r\n")
            self.chunks += said.count(b"data: ") + 1
        else:
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            said = await reader.readexactly(int(length))
        tokens = re.search(rb'"completion_tokens":(\d+)', said)
        assert tokens is not None, said[-300:]
        assert int(tokens[1]) == TOKENS, said[-300:]


async def measure(server: Server, clients: int, requests: int, *, stream: bool, tools: bool) -> Figures:
    """Load one server."""
    ttft_ms: list[float] = []
    numbers = iter(range(requests))
    cpu, began = server.cpu_s(), time.monotonic()
    made = [Client(server.port, stream=stream, tools=tools) for _ in range(clients)]
    try:
        await asyncio.gather(*(client.run(numbers, ttft_ms) for client in made))
    except RequestError as error:
        kind = f"{clients} clients, stream={stream}, tools={tools}"
        raise RequestError(f"{server.name}, {kind}: {error}") from error
    took_s, cpu_s = time.monotonic() - began, server.cpu_s() - cpu
    tokens = requests * TOKENS
    chunks = sum(client.chunks for client in made)
    return Figures(tokens / took_s, ttft_ms, 1e6 * cpu_s / tokens, chunks)


def cpu(cpu_s: float, jobs: int, chunks: int, kind: str) -> dict[str, float]:
    """Processor time of so many jobs by token, job and chunk; jobs that are not streamed have no chunks."""
    each = {"token": jobs * TOKENS, "job": jobs, "chunk": chunks}
    return {f"CPU us per {name}, {kind}": 1e6 * cpu_s / count for name, count in each.items() if count}


def cpu_of(name: str, log: Path, cells: list[tuple[int, bool]], rounds: int) -> dict[str, float]:
    """Processor time of one server in cells of (clients, streamed)."""
    server, figures = start(name, log), dict[str, float]()
    try:
        await_ready(server)
        asyncio.run(measure(server, 16, 32, stream=True, tools=False))
        for clients, stream in cells:
            jobs = rounds * clients
            found = asyncio.run(measure(server, clients, jobs, stream=stream, tools=False))
            figures |= cpu(found.cpu_us_per_token * jobs * TOKENS / 1e6, jobs, found.chunks, kind_of(clients, stream))
        return figures
    except RequestError as error:
        raise SystemExit(f"{error}\n{server.said()}") from None
    finally:
        server.stop()


def kind_of(clients: int, stream: bool) -> str:
    return f"{clients} clients, {'streamed' if stream else 'whole'}"


def settings() -> str:
    """What both were run with."""
    vllm = importlib.metadata.version("vllm-cpu") if "vllm-cpu" in installed() else importlib.metadata.version("vllm")
    engine = " ".join(f"--{name} {value}" for name, value in ENGINE.items())
    return "\n".join(
        [
            f"Python {platform.python_version()}, vLLM {vllm}, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f} before the start",
            f"both: demonstration model, {engine} --enforce-eager",
            f"both: answers of {TOKENS} tokens (ignore_eos), temperature 0.8",
            "both: " + " ".join(f"{name}={value}" for name, value in VARIABLES.items()),
            "vllm serve: --disable-uvicorn-access-log "
            + " ".join(f"{name}={value}" for name, value in KEEP_ALIVE.items()),
            "llmpod: guardrails and log lines as by default",
        ]
    )


def installed() -> set[str]:
    return {str(distribution.metadata["Name"]).lower() for distribution in importlib.metadata.distributions()}


def row(cell: Cell, starts: list[dict[str, Figures]]) -> str:
    """A row of the table, from what each start found of both servers."""
    clients, stream, tools = cell
    kind = ("streamed" if stream else "whole") + (", tools" if tools else "")
    rates, first, cpus = [], [], []
    for name in SERVERS:
        rates.append([start[name].tokens_per_s for start in starts])
        first.append([statistics.median(start[name].ttft_ms) for start in starts if start[name].ttft_ms])
        cpus.append([start[name].cpu_us_per_token for start in starts])
    ratios = [ours / theirs for ours, theirs in zip(*rates, strict=True)]
    spread = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
    cells = [
        *(f"{statistics.median(values):,.0f}" for values in rates),
        f"{statistics.median(ratios):.2f}{spread}",
        *(f"{statistics.median(values):.1f}" if values else "–" for values in first),
        *(f"{statistics.median(values):.0f}" for values in cpus),
        f"{statistics.median(ours / max(theirs, 1e-9) for ours, theirs in zip(*cpus, strict=True)):.2f}",
    ]
    return f"| {clients} | {kind} | " + " | ".join(cells) + " |"


async def measure_cells(servers: list[Server], cells: list[Cell], share: float) -> None:
    """Measure all cells with one start of both servers; `share`: of the requests."""
    for server in servers:
        server.send(signal.SIGSTOP)
    for turn, (count, stream, tools) in enumerate(cells):
        for server in servers if turn % 2 == 0 else servers[::-1]:
            server.send(signal.SIGCONT)
            await measure(server, min(count, 16), min(count, 16), stream=stream, tools=tools)
            requests = max(count, int(REQUESTS[count] * share))
            server.found[count, stream, tools] = await measure(server, count, requests, stream=stream, tools=tools)
            server.send(signal.SIGSTOP)


def run_both(number: int, cells: list[Cell], share: float) -> list[Server]:
    """Start both servers, measure all cells, end them."""
    servers: list[Server] = []
    with tempfile.TemporaryDirectory(prefix="bench-http-") as folder:
        try:
            for name in SERVERS if number % 2 == 0 else SERVERS[::-1]:
                servers.append(start(name, Path(folder, name.replace(" ", "-") + ".log")))
                await_ready(servers[-1])
            asyncio.run(measure_cells(servers, cells[number % 2 :] + cells[: number % 2], share))
        except RequestError as error:
            raise SystemExit("\n".join([str(error), *(server.said() for server in servers)])) from None
        finally:
            for server in servers:
                server.stop()
    return servers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", choices=sorted(REQUESTS), default=sorted(REQUESTS))
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="1, 16 and 128 clients, one start, half the requests")
    options = parser.parse_args()
    end_workers_when_terminated()
    clients, starts, share = ([1, 16, 128], 1, 0.5) if options.quick else (options.clients, options.starts, 1.0)
    cells = [(count, stream, tools) for count in clients for tools in (False, True) for stream in (False, True)]
    print(settings() + f"\nstarts of both: {starts}\n", flush=True)
    runs = [run_both(number, cells, share) for number in range(starts)]
    found = [{server.name: server.found for server in servers} for servers in runs]
    print("| clients | answers | tokens/s llmpod | vllm serve | ratio | TTFT p50 ms llmpod | vllm serve | ", end="")
    print("CPU us/token llmpod | vllm serve | ratio |\n|---|---|---|---|---|---|---|---|---|---|")
    for cell in cells:
        print(row(cell, [{name: one[name][cell] for name in SERVERS} for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
