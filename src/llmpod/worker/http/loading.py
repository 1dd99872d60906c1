"""Health checks while the model loads, answered from a thread: 204 to /ping, 503 to everything else.

The event loop cannot answer yet: importing vLLM and starting its engine block it. RunPod measures a cold start from the
first 204 to the first 200, and sends no requests before the 200. The listening sockets are handed to the HTTP server
when the engine is ready; a connection that arrives in between waits in their backlog.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Collection

from llmpod.worker.errors import StartError
from llmpod.worker.settings import Settings

HEADERS_S = 20.0
"""How long a request's headers may take, from the connection's or the request's first byte."""
BACKLOG = 2048

_ANSWER = "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
_LOADING = json.dumps(
    {
        "error": {
            "message": "The model is loading.",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": 503,
            "retryable": True,
        }
    }
)


def listen(host: str, ports: Collection[int]) -> list[socket.socket]:
    """Listen on each port once.

    Raises:
        StartError: a port is taken, or not this user's to open.
    """
    sockets = []
    for port in dict.fromkeys(ports):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # The protocol is named because asyncio sets TCP_NODELAY only where it is: without it each answer's second write
        # waits 40 ms for the acknowledgement of the first.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise StartError(
                f"The HTTP server cannot listen on {host}:{port}: {error.strerror or error}.",
                "Set PORT, PORT_HEALTH or BIND_HOST to a free one.",
                setting="PORT",
            ) from None
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


class LoadingServer:
    """Answers on the settings' ports until `hand_over`."""

    def __init__(self, settings: Settings, host: str) -> None:
        """Listen.

        Raises:
            StartError: a port is taken, or not this user's to open.
        """
        self._sockets = listen(host, (settings.port, settings.port_health or settings.port))
        self._health_check_path = settings.health_check_path
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="loading", daemon=True)
        os.register_at_fork(after_in_child=self._close)  # vLLM's forked processes would keep the ports open

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def hand_over(self) -> list[socket.socket]:
        """Stop answering, and return the sockets, which still listen."""
        os.write(self._wake, b"x")
        self._thread.join()
        return self._sockets

    def _close(self) -> None:
        for listener in self._sockets:
            listener.close()

    def _serve(self) -> None:
        with select.epoll() as ready:
            ready.register(self._woken, select.EPOLLIN)
            listeners = {listener.fileno(): listener for listener in self._sockets}
            for number in listeners:
                ready.register(number, select.EPOLLIN)
            while True:
                for number, _ in ready.poll():
                    if number == self._woken:
                        return
                    try:
                        client, _ = listeners[number].accept()
                    except OSError:  # it has gone, or there are no more descriptors
                        time.sleep(0.01)
                        continue
                    threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(HEADERS_S)
                request = b""
                while b"\r\n\r\n" not in request and len(request) < 1 << 16:
                    received = client.recv(1 << 16)
                    if not received:
                        return
                    request += received
                _, target, _ = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
                client.sendall(self._response(target.partition("?")[0]).encode())
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):  # closing with unread data would take the answer back
                    pass
        except (OSError, ValueError):
            return

    def _response(self, path: str) -> str:
        if path == self._health_check_path:
            return "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
        headers = "content-type: application/json\r\nretry-after: 1\r\n"
        return _ANSWER.format(status="503 Service Unavailable", headers=headers, length=len(_LOADING), body=_LOADING)
