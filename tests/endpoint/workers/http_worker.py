"""An HTTP worker for the load balancer: serves on PORT, says how it is on PORT_HEALTH, does what a request asks for.

Environment: START_S (seconds until the port opens), INIT_S (seconds of 204 afterwards).
"""

import asyncio
import os
import signal
import time
from collections import Counter

from aiohttp import WSMsgType, web

STARTED = time.monotonic()
counts = Counter()
ping = {"status": 200}
gates = {}


def gate(request):
    return gates.setdefault(request.query.get("gate", ""), asyncio.Event())


async def say_how(request):
    if time.monotonic() - STARTED < float(os.environ.get("START_S", 0)) + float(os.environ.get("INIT_S", 0)):
        return web.Response(status=204)
    return web.Response(status=ping["status"])


async def set_ping(request):
    ping["status"] = int(request.query["status"])
    return web.Response()


async def echo(request):
    body = await request.read()
    headers = [[name, value] for name, value in request.headers.items()]
    return web.json_response(
        {"method": request.method, "path": request.raw_path, "headers": headers, "body": body.decode("latin-1")},
        headers={"X-Twice": "a", "Keep-Alive": "timeout=5"},
    )


async def length(request):
    size = 0
    while block := await request.content.readany():
        size += len(block)
    return web.json_response({"bytes": size})


async def stream(request):
    """Two events; the second waits for /open?gate=NAME. With `exit` the process ends instead."""
    counts["streams"] += 1
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    try:
        await response.write(b"data: 1\n\n")
        if "exit" in request.query:
            os._exit(3)
        await gate(request).wait()
        await response.write(b"data: 2\n\n")
    except asyncio.CancelledError:
        counts["left"] += 1
        raise
    await response.write_eof()
    return response


async def hold(request):
    """Answers when /open?gate=NAME was called."""
    counts["held"] += 1
    await gate(request).wait()
    return web.json_response({"pid": os.getpid()})


async def open_gate(request):
    gate(request).set()
    return web.Response()


async def count(request):
    return web.json_response({"pid": os.getpid(), **counts})


async def many_bytes(request):
    size = int(request.query["n"])
    response = web.StreamResponse()
    if "chunked" in request.query:
        response.enable_chunked_encoding()
    else:
        response.content_length = size
    await response.prepare(request)
    for start in range(0, 0 if request.method == "HEAD" else size, 65536):
        await response.write(b"x" * min(65536, size - start))
    await response.write_eof()
    return response


async def answer(request):
    return web.Response(status=int(request.query["status"]), headers={"Location": "/elsewhere"})


async def leave(request):
    os._exit(4)


async def chat(request):
    socket = web.WebSocketResponse(protocols=("chat",))
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data == "bye":
            await socket.close(code=4001)
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data[::-1])
    return socket


async def serve():
    app = web.Application(client_max_size=1 << 30)
    routes = {
        "/ping": say_how, "/set-ping": set_ping, "/length": length, "/stream": stream, "/hold": hold,
        "/open": open_gate, "/count": count, "/bytes": many_bytes, "/answer": answer, "/leave": leave, "/ws": chat,
        "/{rest:.*}": echo,
    }  # fmt: skip
    for path, handler in routes.items():
        app.router.add_route("*", path, handler)
    health = web.Application()
    health.router.add_get("/ping", say_how)
    await asyncio.sleep(float(os.environ.get("START_S", 0)))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ports = {os.environ["PORT_HEALTH"]: health, os.environ["PORT"]: app}
    runners = []
    for port, served in ports.items():
        runner = web.AppRunner(served, handler_cancellation=True, shutdown_timeout=5, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(port)).start()
        runners.append(runner)
    print("serving on", os.environ["PORT"])
    await stop.wait()
    gates.setdefault("stop", asyncio.Event()).set()
    for runner in runners:
        await runner.cleanup()


if __name__ == "__main__":
    assert not [name for name in os.environ if name.startswith("RUNPOD_WEBHOOK_")], "a queue's variables"
    asyncio.run(serve())
