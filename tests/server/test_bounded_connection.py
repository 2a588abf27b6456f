"""Deadlines and seats of client connections, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tests.wire import Client
from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.proxy.known_heads import KnownHeads
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.server.bounded_connection import Bounds
from wings_proxy.server.client_connection import ClientConnection
from wings_proxy.server.connection_cap import RESERVE
from wings_proxy.server.runner import Runner

LATER = 3600.0
SIXTEEN_MIB = 16 * 1024 * 1024
REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Served:
    runner: Runner
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
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

    async def livez(self, client: Client) -> int:
        await client.send(REQUEST)
        return (await client.answer()).status


@asynccontextmanager
async def served(*, most: int = 100, keepalive: float = LATER, **bounds: Any) -> AsyncIterator[Served]:
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


async def test_a_head_that_does_not_end_is_answered_408_and_closed() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.client()
        await client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        answer = await client.answer()
        assert (answer.status, answer.one(b"Connection")) == (408, b"close")
        assert json.loads(answer.body)["error"]["code"] == "request_timeout"
        assert await client.at_end()
        assert running.refusals == [ErrorCode.REQUEST_TIMEOUT]


async def test_dripping_bytes_do_not_move_the_deadline() -> None:
    async with served(head_seconds=0.1) as running:
        client = await running.client()
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            await client.send(b"GET /livez HTTP/1.1\r\nA: ")
            while not client.reader.at_eof():
                await client.send(b"X")
                await asyncio.sleep(0.01)
        assert running.refusals == [ErrorCode.REQUEST_TIMEOUT]
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.client()
        assert await client.at_end()


async def test_the_next_head_has_its_deadline_too() -> None:
    async with served(head_seconds=0.2) as running:
        client = await running.client()
        assert await running.livez(client) == 200
        await client.send(b"GET /li")
        assert (await client.answer()).status == 408


async def test_between_two_requests_only_the_idle_time_counts() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.client()
        assert await running.livez(client) == 200
        await asyncio.sleep(0.15)
        assert await running.livez(client) == 200


async def test_an_answer_may_take_longer_than_a_head() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.busy_client()
        await asyncio.sleep(0.15)
        running.go_on.set()
        assert (await client.answer()).status == 200


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with served(keepalive=0.1) as running:
        client = await running.client()
        assert await running.livez(client) == 200
        assert await client.at_end()


async def test_a_head_that_grows_without_end_is_refused_long_before_its_deadline() -> None:
    async with served(head_bytes=20_000) as running:
        client = await running.client()
        await client.send(b"GET /livez HTTP/1.1\r\n" + b"".join(b"A%d: %b\r\n" % (n, b"x" * 5000) for n in range(8)))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "invalid_request")
        assert await client.at_end()


async def test_at_the_cap_the_oldest_idle_connection_goes() -> None:
    async with served(most=2) as running:
        oldest, younger = await running.client(), await running.client()
        assert await running.livez(oldest) == 200
        assert await running.livez(younger) == 200
        newest = await running.client()
        assert await running.livez(newest) == 200
        assert await oldest.at_end()
        assert await running.livez(younger) == 200
        assert running.runner.connections.evicted == 1


async def test_a_half_head_does_not_keep_a_seat() -> None:
    async with served(most=1) as running:
        half = await running.client()
        await half.send(b"GET /")
        newest = await running.client()
        assert await running.livez(newest) == 200
        assert await half.at_end()


async def test_a_probe_is_answered_when_everybody_else_is_refused() -> None:
    async with served(most=2) as running:
        busy = [await running.busy_client() for _ in range(2)]
        stranger = await running.client()
        await stranger.get(target=b"/waits")
        refused = await stranger.answer()
        assert (refused.status, refused.one(b"Retry-After"), refused.one(b"Connection")) == (503, b"1", b"close")
        assert json.loads(refused.body)["error"]["code"] == "overloaded"
        assert running.refusals == [ErrorCode.OVERLOADED]
        assert await running.livez(await running.client()) == 200
        running.go_on.set()
        assert [(await client.answer()).status for client in busy] == [200, 200]


async def test_the_silent_do_not_fill_the_reserve() -> None:
    async with served(most=1) as running:
        await running.busy_client()
        silent = [await running.client() for _ in range(RESERVE)]
        assert await running.livez(await running.client()) == 200
        assert await silent[0].at_end()


async def test_seats_come_back() -> None:
    async with served(most=1) as running:
        for _ in range(3):
            client = await running.client()
            assert await running.livez(client) == 200
            client.close()
            while len(running.runner.connections):  # noqa: ASYNC110 - the proxy rings no bell
                await asyncio.sleep(0)
        assert running.runner.connections.evicted == 0


async def unread(running: Served, target: bytes) -> None:
    client = await running.client(receive_buffer=4096)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(b"GET %b HTTP/1.0\r\nHost: x\r\n\r\n" % target)
    while len(running.runner.connections) == 0:  # noqa: ASYNC110 - the proxy rings no bell
        await asyncio.sleep(0)


async def test_an_answer_of_our_own_that_nobody_reads_is_given_up() -> None:
    async with served(farewell_seconds=0.1) as running:
        await unread(running, b"/large")
        while len(running.runner.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_closed_connection_whose_client_does_not_read_ends_all_the_same() -> None:
    """A closed transport waits for its buffer to be empty: for ever."""
    async with served(farewell_seconds=0.1) as running:
        await unread(running, b"/pushed")
        while len(running.runner.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_answer_nobody_takes_is_not_kept_for_an_idle_connection() -> None:
    async with served(farewell_seconds=0.1) as running:
        client = await running.client(receive_buffer=4096)
        await client.get(target=b"/pushed")
        while not len(running.runner.connections):  # noqa: ASYNC110 - the proxy rings no bell
            await asyncio.sleep(0)
        while len(running.runner.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_an_answer_that_is_taken_slowly_is_left_in_peace() -> None:
    """The looks at it are ours: the kernel may hand a client with a small buffer nothing for 200 ms."""
    async with served(farewell_seconds=LATER) as running:
        client = await running.client(receive_buffer=65536)
        await client.get(target=b"/pushed")
        while not (connections := running.runner.server.connections if running.runner.server else []):  # noqa: ASYNC110
            await asyncio.sleep(0)
        [connection] = connections
        assert isinstance(connection, ClientConnection)
        while connection._keepalive_handle is None:  # noqa: ASYNC110 - the proxy rings no bell
            await asyncio.sleep(0)
        transport = connection.transport
        assert transport is not None
        for _ in range(5):
            connection._keepalive_handle.cancel()
            connection._process_keepalive()
            untaken = transport.get_write_buffer_size()
            while transport.get_write_buffer_size() == untaken:
                assert await client.reader.read(65536)
        assert len(running.runner.connections) == 1


# ---- what is not HTTP


async def _kept_of(sent: bytes) -> list[str]:
    """Send it, and more, to a fresh server; return what is kept of the parser's errors while nothing is collected."""
    gc.collect()
    gc.disable()
    try:
        async with served() as server:
            for _ in range(5):
                client = await server.client()
                with contextlib.suppress(ConnectionError):
                    for _ in range(20):
                        await client.send(sent + bytes(50_000))
                        await asyncio.sleep(0)
                    await client.reader.read()
                client.close()
            while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
                await asyncio.sleep(0.01)
            return [str(error) for error in gc.get_objects() if isinstance(error, HttpProcessingError)]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "sent", [b"BAD\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", REQUEST[:-2] + b"Content-Length: x\r\n\r\n"]
)
async def test_what_is_not_http_is_not_kept_as_garbage(sent: bytes) -> None:
    """A parser's error quotes a piece of up to 256 KiB twice: strangers could fill the memory with it."""
    assert await _kept_of(sent) == []


async def test_behind_what_is_not_http_nothing_is_parsed() -> None:
    async with served() as server:
        client = await server.client()
        while not server.runner.connections:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0)
        [connection] = server.runner.connections._all
        for _ in range(5):
            connection.data_received(b"BAD\r\n\r\n")
        assert len(connection._messages) == 1
        assert (await client.answer()).status == 400
        assert server.refusals == [ErrorCode.INVALID_REQUEST]


async def test_a_client_that_leaves_inside_a_body_nobody_wanted_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """aiohttp reads it over, and finds the connection gone."""
    gone = RuntimeError("Connection closed.")
    async with served() as server:
        client = await server.client()
        assert await server.livez(client) == 200
        [connection] = server.runner.connections._all
        connection.log_exception("Unhandled exception", exc_info=gone)
        assert len(caplog.records) == 1
        client.close()
        while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)
        connection.log_exception("Unhandled exception", exc_info=gone)
        assert len(caplog.records) == 1
        connection.log_exception("Unhandled exception", exc_info=ValueError("of ours"))
        assert len(caplog.records) == 2
