"""Terminal output on stderr: a banner, starts and ends of workers, and workers' log lines with a prefix."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from rich.console import Console as RichConsole
from rich.text import Text

from llmpod.endpoint.options import Options
from llmpod.endpoint.state.fleet_worker import FleetWorker

FLUSH_S = 0.1
LINES_PER_FLUSH = 100
"""A worker that prints thousands of lines a second would make the terminal the bottleneck; the page has them."""
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class OneLine(logging.Handler):
    """What the HTTP server logs (garbage on the port, mostly) as one line each; its tracebacks are about the caller."""

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        said = " ".join(str(error or "").split())
        self._report(f"{record.getMessage()}: {said}" if said else record.getMessage())


def http_log(report: Callable[[str], None]) -> logging.Logger:
    """A logger of our own: the framework's is shared by every aiohttp server of the process."""
    logger = logging.Logger("llmpod.endpoint.api.http")
    logger.addHandler(OneLine(report))
    return logger


class Console:
    """Lines gather in memory and are written by `run`, off the event loop."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = RichConsole(file=sys.stderr, highlight=False, soft_wrap=True) if enabled else None
        self._lines: list[tuple[str, str, str]] = []
        self._dropped = 0
        self._colour: dict[str, str] = {}

    def banner(self, url: str, page: str, options: Options) -> None:
        if self._console is None:
            return
        print_line = self._console.print
        print_line(Text.assemble(("llmpod endpoint ", "bold"), (url, "bold cyan")))
        print_line(f"  page     {page}")
        print_line(f"  worker   {options.command_line if options.fleet else '(started by somebody else)'}")
        rule = "REQUEST_COUNT" if options.kind == "load-balancer" else options.scaler_type
        print_line(f"  workers  {options.workers_min} to {options.workers_max}, {rule} {options.scaler_value:g}")
        print_line("  stop     Ctrl-C")

    def report(self, text: str) -> None:
        """One line about the fleet."""
        self._add("endpoint", text, "bold")

    def log(self, worker: FleetWorker, line: str) -> None:
        """One line that a worker printed."""
        if worker.id not in self._colour:
            self._colour[worker.id] = COLOURS[len(self._colour) % len(COLOURS)]
        self._add(worker.id, line, self._colour[worker.id])

    def _add(self, source: str, line: str, style: str) -> None:
        if self._console is None:
            return
        if len(self._lines) < LINES_PER_FLUSH or source == "endpoint":
            self._lines.append((source, line, style))
        else:
            self._dropped += 1

    async def run(self) -> None:
        """Writes what has gathered until cancelled, in a thread: a terminal can be slow or stopped."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if self._lines:
                # Taken here and not in the thread: the event loop goes on appending.
                await asyncio.shield(asyncio.to_thread(self._write, *self._taken()))

    def flush(self) -> None:
        self._write(*self._taken())

    def _taken(self) -> tuple[list[tuple[str, str, str]], int]:
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        return lines, dropped

    def _write(self, lines: list[tuple[str, str, str]], dropped: int) -> None:
        if self._console is None:
            return
        for source, line, style in lines:
            # Text, not markup: a worker's line may contain anything.
            self._console.print(Text.assemble((f"{source:>14} | ", style), Text.from_ansi(line)))
        if dropped:
            self._console.print(f"{'endpoint':>14} | {dropped} more lines; the page shows each worker's latest")
