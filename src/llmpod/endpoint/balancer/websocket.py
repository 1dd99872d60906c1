"""WebSocket through the load balancer: messages of both sides are passed on until one of them closes."""

from __future__ import annotations

import asyncio

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web
from multidict import CIMultiDict
from yarl import URL

from llmpod.endpoint.balancer.routing import WORKER_ID
from llmpod.endpoint.errors import ApiError

OF_THE_HANDSHAKE = ("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol")
MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024

Socket = web.WebSocketResponse | ClientWebSocketResponse


def asked_for(request: web.Request) -> bool:
    """Whether a request is the handshake of a WebSocket."""
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


async def relay(
    request: web.Request, session: ClientSession, target: URL, headers: CIMultiDict[str], worker_id: str
) -> web.WebSocketResponse:
    """Connects client and worker. Raises ApiError: the worker's code where it refuses, 502 where it is not there."""
    said = request.headers.get("Sec-WebSocket-Protocol", "")
    protocols = [name.strip() for name in said.split(",") if name.strip()]
    for name in OF_THE_HANDSHAKE:
        headers.popall(name, None)
    try:
        worker = await session.ws_connect(
            target, headers=headers, protocols=protocols, max_msg_size=MESSAGE_LIMIT_BYTES, autoping=False
        )
    except WSServerHandshakeError as error:
        raise ApiError(error.status if error.status >= 400 else 502, error.message) from None
    except (ClientError, OSError) as error:
        raise ApiError(502, f"worker {worker_id}: {error}") from None
    async with worker:
        chosen = (worker.protocol,) if worker.protocol else ()
        client = web.WebSocketResponse(protocols=chosen, max_msg_size=MESSAGE_LIMIT_BYTES, autoping=False)
        client.headers[WORKER_ID] = worker_id
        await client.prepare(request)
        ways = [asyncio.create_task(_copy(client, worker)), asyncio.create_task(_copy(worker, client))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        if not client.closed:
            code = worker.close_code
            await client.close(code=code if code is not None and code not in (1005, 1006) else 1011)
    return client


async def _copy(source: Socket, target: Socket) -> None:
    """Until the source closes, then the target is closed with the same code."""
    async for message in source:
        match message.type:
            case WSMsgType.TEXT:
                await target.send_str(message.data)
            case WSMsgType.BINARY:
                await target.send_bytes(message.data)
            case WSMsgType.PING:
                await target.ping(message.data)
            case WSMsgType.PONG:
                await target.pong(message.data)
            case _:
                return
