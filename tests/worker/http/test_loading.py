"""Health checks before the engine is there: answered from a thread, whatever the event loop does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmpod.worker.errors import StartError
from llmpod.worker.http import loading
from llmpod.worker.http.loading import LoadingServer
from llmpod.worker.settings import Settings
from tests.worker.http.serving import Answer, parsed, post, request

pytestmark = pytest.mark.process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, sent: bytes) -> Answer:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(sent)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return parsed(received)


@contextmanager
def server(**settings: int) -> Iterator[tuple[LoadingServer, int]]:
    port = free_port()
    made = LoadingServer(Settings(port=port, **settings), "127.0.0.1")
    made.start()
    try:
        yield made, port
    finally:
        for listener in made.hand_over() if made.running else ():
            listener.close()


def test_ping_is_204_and_everything_else_503_while_the_main_thread_is_busy() -> None:
    with server() as (_, port):
        busy_until = time.monotonic() + 0.3
        before = time.thread_time()
        answers = []
        while time.monotonic() < busy_until:
            sum(range(10_000))
        answers = [ask(port, request(method, "/ping?x=1")) for method in ("GET", "HEAD")]
        assert time.thread_time() > before
        assert [(answer.status, answer.content) for answer in answers] == [(204, b""), (204, b"")]
        for sent in (post(b'{"input": {}}'), post(b"x" * 1_000_000), request("GET", "/v1/models")):
            answer = ask(port, sent)
            assert (answer.status, answer.error["retryable"], answer.headers["retry-after"]) == (503, True, "1")


def test_slow_and_broken_clients_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "HEADERS_S", 0.3)
    with server() as (_, port):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
        assert ask(port, request("GET", "/ping")).status == 204
        for garbage in (b"\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(garbage)
                assert client.recv(10) == b""
        for client in silent:
            client.settimeout(10)
            assert client.recv(10) == b"", "closed after HEADERS_S"
            client.close()


def test_the_health_port_is_another_or_the_same() -> None:
    health = free_port()
    with server(port_health=health) as (made, port):
        assert ask(health, request("GET", "/ping")).status == 204
        assert ask(port, request("GET", "/ping")).status == 204
        listeners = made.hand_over()
        assert [listener.getsockname()[1] for listener in listeners] == [port, health]
        # What connects now waits, and is not refused.
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"x")
        for listener in listeners:
            listener.close()


def test_a_forked_process_does_not_keep_the_port_open() -> None:
    with server() as (made, port):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            open_there = any(listener.fileno() >= 0 for listener in made._sockets)
            os.write(writing, b"open" if open_there else b"shut")
            os._exit(0)
        assert os.read(reading, 4) == b"shut"
        os.waitpid(pid, 0)
        assert ask(port, request("GET", "/ping")).status == 204


def test_a_port_that_is_taken_stops_the_start() -> None:
    with server() as (_, port):
        with pytest.raises(StartError) as caught:
            LoadingServer(Settings(port=port), "127.0.0.1")
        assert str(port) in caught.value.cause
        assert caught.value.setting == "PORT"
    with pytest.raises(StartError):
        LoadingServer(Settings(port=0), "no.such.host.invalid")
