"""A Pushgateway and an OpenTelemetry collector on loopback that keep what they are sent."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Call(NamedTuple):
    """A request."""

    method: str
    path: str
    authorization: str | None
    body: bytes


class Gateway:
    """Records every call and answers with `status`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.status = 200
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gateway.calls.append(Call(self.command, self.path, self.headers.get("Authorization"), body))
                self.send_response(gateway.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_DELETE = do_POST = do_PUT  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def methods(self, within: str = "/metrics/") -> list[str]:
        return [call.method for call in self.calls if call.path.startswith(within)]

    def bodies(self, path: str) -> list[bytes]:
        return [call.body for call in self.calls if call.path.startswith(path) and call.body]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
