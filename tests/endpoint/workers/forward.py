"""A worker that is a server elsewhere: passes each connection to PORT on to TARGET, until one side ends."""

import contextlib
import os
from pathlib import Path

# A worker gives way to others (process_guard.py). This one does not compute, and behind the engine to which it passes
# requests on it would wait for seconds.
with contextlib.suppress(OSError):
    Path("/proc/self/autogroup").write_text("0")
    os.setpriority(os.PRIO_PROCESS, 0, 0)

import asyncio


async def copy(reader, writer):
    try:
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def connected(reader, writer):
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", int(os.environ["TARGET"]))
    # Who leaves a request in the middle closes: then the other side has to learn of it, and not wait for an answer.
    await asyncio.wait(
        [asyncio.ensure_future(copy(reader, there_writer)), asyncio.ensure_future(copy(there_reader, writer))],
        return_when=asyncio.FIRST_COMPLETED,
    )
    for one in (writer, there_writer):
        one.close()


async def serve():
    server = await asyncio.start_server(connected, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


asyncio.run(serve())
