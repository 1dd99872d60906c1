"""Watch command: serves an endpoint's health and the times of probe jobs to Prometheus."""

import asyncio
import json
import signal
import sys
from typing import Any

from aiohttp import web

from llmpod.loadtest.cli.target import resolve
from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import Exit, LoadTestError, UsageError
from llmpod.loadtest.options import PROG, WatchOptions
from llmpod.loadtest.run.client import connected
from llmpod.loadtest.watch.exposition import CONTENT_TYPE, Numbers
from llmpod.loadtest.watch.watcher import Watcher, every

PROBE_INPUT = {"prompt": "Say hello.", "sampling_params": {"max_tokens": 16, "temperature": 0}}


async def watch(options: WatchOptions, environment: Environment) -> Exit:
    """Watches until SIGTERM or SIGINT; with --once, looks once and prints the metrics.

    Raises:
        LoadTestError: the options do not fit together, or the address cannot be listened on.
    """
    host, port = listen_address(options.listen)
    probe_input = _probe_input(options.probe_input)
    base_url = resolve(options, environment)
    numbers = Numbers(base_url.rstrip("/").rsplit("/", 1)[-1])
    async with connected(base_url, environment.api_key, options.limits) as client:
        watcher = Watcher(client, numbers, probe_input, options.probe_timeout, _say)
        if options.once:
            seen = await watcher.look()
            answered = await watcher.probe() if options.probe_every else True
            sys.stdout.write(numbers.text())
            return Exit.PASS if seen and answered else Exit.ERROR
        await _serve(watcher, options, host, port)
    return Exit.PASS


async def _serve(watcher: Watcher, options: WatchOptions, host: str, port: int) -> None:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=watcher.numbers.text().encode(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise LoadTestError(f"cannot listen on {options.listen}: {error.strerror}") from None
        _say(f"serving http://{host}:{runner.addresses[0][1]}/metrics")
        tasks = [asyncio.create_task(every(options.poll_every, watcher.look))]
        if options.probe_every:
            tasks.append(asyncio.create_task(every(options.probe_every, watcher.probe)))
        ending = asyncio.create_task(stopped.wait())
        done, _ = await asyncio.wait((*tasks, ending), return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, ending):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done - {ending}:
            task.result()  # a defect: nothing else ends these
    finally:
        await runner.cleanup()


def listen_address(text: str) -> tuple[str, int]:
    """Host and port. Raises UsageError."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"--listen {text!r}: give HOST:PORT, like 127.0.0.1:9108")
    return host.strip("[]") or "127.0.0.1", int(port)


def _probe_input(text: str | None) -> Any:
    if text is None:
        return PROBE_INPUT
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--probe-input is not JSON: {error}") from None


def _say(text: str) -> None:
    sys.stderr.write(f"{PROG} watch: {text}\n")
    sys.stderr.flush()
