"""HTTP server of an endpoint: one aiohttp application per port, page and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from aiohttp import web
from jinja2 import Environment, FileSystemLoader

from llmpod.endpoint.api.router import KEEPALIVE_S, MAX_LINE_BYTES, Gate, json_errors
from llmpod.endpoint.errors import StartError

PAGES = Path(__file__).parents[1] / "page"
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHUTDOWN_S = 0.5


async def listen(
    routes: Iterable[web.AbstractRouteDef],
    host: str,
    port: int,
    report: Callable[[str], None],
    logger: logging.Logger,
    *,
    flag: str,
    auto_decompress: bool,
) -> tuple[web.AppRunner, int]:
    """Serves `routes`; the runner and its port (0 picks a free one). Raises StartError that names `flag`."""
    app = web.Application(middlewares=[json_errors(report)])
    app.add_routes(routes)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        logger=logger,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=MAX_LINE_BYTES,
        shutdown_timeout=SHUTDOWN_S,
        auto_decompress=auto_decompress,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; try another {flag}") from None
    return runner, runner.addresses[0][1]


def page_text(page: str) -> str:
    """A page with its style and script inside. Not escaped: nothing but the package's own files goes in."""
    return Environment(loader=FileSystemLoader(PAGES), autoescape=False).get_template(page).render()  # noqa: S701


def page_routes(page: str, metrics: Callable[[], bytes], gate: Gate) -> list[web.RouteDef]:
    """GET / and GET /metrics. `page`: a file of PAGES. The page itself needs no key: it asks for it."""
    text = page_text(page)
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}

    async def show(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def measure(request: web.Request) -> web.StreamResponse:
        gate.check_source(request)
        gate.check_client(request)
        return web.Response(body=metrics(), headers={"Content-Type": METRICS_TYPE})

    return [web.get("/", show), web.get("/metrics", measure)]
