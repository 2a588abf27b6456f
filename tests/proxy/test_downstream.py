"""What the byte path rests on in aiohttp's server. When one of these fails, aiohttp has changed under us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.wire import Client
from wings_proxy.proxy.downstream import Downstream
from wings_proxy.server.responses import SentResponse

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


def downstream(request: web.BaseRequest) -> Downstream:
    return Downstream(request.protocol, request._message)


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Client]:
    server = web.Server(handler, handler_cancellation=True, access_log=None, lingering_time=1.0)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Client(*await asyncio.open_connection(*runner.addresses[0][:2]))
    try:
        async with asyncio.timeout(40):
            yield client
    finally:
        client.close()
        await runner.cleanup()


async def test_what_a_handler_wrote_itself_is_the_whole_answer() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        downstream(request).write(HEAD + b"ok")
        return SentResponse(keep_alive=True)

    async with served(handler) as client:
        for _ in range(3):
            await client.send(REQUEST)
            answer = await client.answer()
            assert (answer.start, answer.fields, answer.body) == (
                b"HTTP/1.1 200 OK",
                [(b"Content-Length", b"2")],
                b"ok",
            )


async def test_an_answer_that_ends_the_connection_is_flushed_first() -> None:
    body = b"x" * 1_000_000

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        client = downstream(request)
        client.keep_alive = False
        client.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        return SentResponse(keep_alive=client.keep_alive)

    async with served(handler) as client:
        await client.send(REQUEST)
        assert (await client.answer()).body == body


async def test_a_body_nobody_read_is_not_the_next_request() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        downstream(request).write(HEAD + b"ok")
        return SentResponse(keep_alive=True)

    async with served(handler) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n")
        assert (await client.answer()).body == b"ok"
        await client.send(b"GET / HTTP/1.1\r\n\r\n".ljust(500_000) + REQUEST)
        assert (await client.answer()).body == b"ok"


async def test_what_a_request_says_of_its_client() -> None:
    seen: list[tuple[bool, bool, bytes | None]] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        client = downstream(request)
        seen.append((client.http10, client.keep_alive, client.connection_field))
        client.write(HEAD + b"ok")
        return SentResponse(keep_alive=client.keep_alive)

    async with served(handler) as client:
        for head in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ):
            await client.send(head)
            await client.answer()
        assert seen == [(False, True, None), (True, True, b"keep-alive"), (False, False, b"close")]


async def test_a_reset_is_not_a_clean_end() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        client = downstream(request)
        client.write(b"HTTP/1.0 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.01)
        client.reset()
        return SentResponse(keep_alive=False)

    async with served(handler) as client:
        await client.send(REQUEST)
        with pytest.raises(ConnectionError):
            await client.reader.read()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_cancels_the_handler(how: str) -> None:
    here, cancelled = asyncio.Event(), asyncio.Event()
    seen: list[bool] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        client = downstream(request)
        seen.append(client.is_gone or client.has_left)
        here.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(client.is_gone and client.has_left)
            client.write(b"nobody hears this")
            assert not client.writing_paused
            client.reset()
            cancelled.set()
        raise AssertionError

    async with served(handler) as client:
        await client.send(REQUEST)
        await here.wait()
        getattr(client, how)()
        await cancelled.wait()
        assert seen == [False, True]


async def test_a_body_that_stops_being_http_never_ends() -> None:
    here = asyncio.Event()
    seen: list[bool] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        client = downstream(request)
        assert await request.content.readany() == b"body"
        seen.append(client.body_is_broken)
        here.set()
        while not client.body_is_broken:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await request.content.readany()
        seen.append(client.body_is_broken)
        client.write(HEAD + b"ok")
        return SentResponse(keep_alive=False)

    async with served(handler) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
        await here.wait()
        await client.send(b"not a chunk\r\n")
        await client.answer()
        assert seen == [False, True]
