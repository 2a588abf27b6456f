"""A server of bounded connections, with endpoints of its own and no engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web

from tests.wire import Client
from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.proxy.known_heads import KnownHeads
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.server.bounded_connection import BoundedServer, Bounds
from wings_proxy.server.runner import Runner

LATER = 3600.0
SIXTEEN_MIB = 16 * 1024 * 1024
REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Served:
    runner: Runner
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    pushed: int = 0
    refusals: list[ErrorCode] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def client(self, *, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, self.runner.addresses[0][:2])
        client = Client(*await asyncio.open_connection(sock=sock, limit=2**16))
        self.clients.append(client)
        return client

    async def busy_client(self) -> Client:
        waiting = self.waiting
        client = await self.client()
        await client.get(target=b"/waits")
        while self.waiting == waiting:  # noqa: ASYNC110 - the proxy rings no bell
            await asyncio.sleep(0)
        return client

    @property
    def heads_bytes(self) -> int:
        """What unfinished heads hold together."""
        assert isinstance(self.runner.server, BoundedServer)
        return self.runner.server.heads._bytes

    async def livez(self, client: Client) -> int:
        await client.send(REQUEST)
        return (await client.answer()).status


@asynccontextmanager
async def served(
    *, most: int = 100, keepalive: float = LATER, patience: float = 0.0, **bounds: Any
) -> AsyncIterator[Served]:
    app = web.Application()
    shared = SimpleNamespace(known_heads=KnownHeads(frozenset()), upload_pace=UploadPace(asyncio.get_running_loop()))
    runner = Runner(
        app,
        cast("Forwarder", shared),
        lambda _: None,
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=0.05,
        keepalive_timeout=keepalive,
        bounds=Bounds(**bounds),
        most_connections=most,
        on_refusal=lambda code: running.refusals.append(code),
        patience=lambda: patience,
    )
    running = Served(runner)

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive")

    async def waits(_: web.Request) -> web.Response:
        running.waiting += 1
        await running.go_on.wait()
        return web.Response(text="done")

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(SIXTEEN_MIB))

    app.router.add_get("/livez", livez)
    app.router.add_get("/waits", waits)

    async def pushed(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.write(bytes(SIXTEEN_MIB))
        running.pushed += 1
        request.protocol._paused = False  # nobody waits for it, as when it is less than the buffer's bound
        return web.Response()

    app.router.add_get("/large", large)
    app.router.add_get("/pushed", pushed)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with asyncio.timeout(60):
            yield running
    finally:
        for client in running.clients:
            client.close()
        await runner.cleanup()


async def unread(running: Served, target: bytes) -> Client:
    """Ask, and read nothing."""
    client = await running.client(receive_buffer=4096)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(b"GET %b HTTP/1.0\r\nHost: x\r\n\r\n" % target)
    while len(running.runner.connections) == 0:  # noqa: ASYNC110 - the proxy rings no bell
        await asyncio.sleep(0)
    return client


async def to_the_end(client: Client) -> int:
    """Read on; return how many bytes came before the end."""
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    size = 0
    while data := await client.reader.read(65536):
        size += len(data)
    return size
