"""The request's body on its way up."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.downstream import Downstream
from wings_proxy.exchange import Exchange
from wings_proxy.upload import Body, pump_body
from wings_proxy.upstream import Connection


class FakeClient:
    def __init__(self) -> None:
        self.body_is_broken = False
        self.has_left = False
        self.was_reset = False

    def reset(self) -> None:
        self.was_reset = True


class FakeConnection:
    """Takes everything at once, or nothing until `free`."""

    def __init__(self) -> None:
        self.sent = b""
        self.free = asyncio.Event()
        self.free.set()

    def write(self, data: bytes) -> None:
        self.sent += data

    @property
    def writing_paused(self) -> bool:
        return not self.free.is_set()

    async def drain(self) -> None:
        await self.free.wait()


class Rig:
    def __init__(self, *, pause_seconds: float = 1.0) -> None:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.transport = cast("asyncio.Transport", object())  # StreamReader asks whether there is one
        self.content = StreamReader(protocol, 2**16, loop=loop)
        self.client = FakeClient()
        self.connection = FakeConnection()
        self.exchange = Exchange("other", "POST", "id", 0.0)
        self.moves = 0
        self.body = Body(self.content, cast("Downstream", self.client), pause_seconds)

    def moved(self) -> None:
        self.moves += 1

    async def pump(self, *, chunked: bool = False, limit: int = 100) -> None:
        await pump_body(
            self.body,
            cast("Connection", self.connection),
            self.exchange,
            self.moved,
            chunked=chunked,
            limit=limit,
        )


async def test_a_body_goes_up_piece_by_piece() -> None:
    rig = Rig()
    rig.content.feed_data(b"one")
    pumping = asyncio.create_task(rig.pump())
    for _ in range(3):
        await asyncio.sleep(0)
    assert rig.connection.sent == b"one"
    rig.content.feed_data(b"two")
    rig.content.feed_eof()
    await pumping
    assert rig.connection.sent == b"onetwo"
    assert (rig.exchange.received_bytes, rig.moves) == (6, 2)


async def test_a_chunked_body_is_given_our_chunks_and_its_end() -> None:
    rig = Rig()
    rig.content.feed_data(b"0123456789")
    rig.content.feed_eof()
    await rig.pump(chunked=True)
    assert rig.connection.sent == b"a\r\n0123456789\r\n0\r\n\r\n"


async def test_the_byte_over_the_limit_is_not_sent() -> None:
    rig = Rig()
    rig.content.feed_data(b"0123")
    rig.content.feed_eof()
    with pytest.raises(ApiError) as caught:
        await rig.pump(chunked=True, limit=3)
    assert caught.value.code is ErrorCode.REQUEST_TOO_LARGE
    assert rig.connection.sent == b""


async def test_an_engine_that_does_not_read_holds_the_body_back() -> None:
    rig = Rig()
    rig.connection.free.clear()
    rig.content.feed_data(b"one")
    pumping = asyncio.create_task(rig.pump())
    for _ in range(3):
        await asyncio.sleep(0)
    rig.content.feed_data(b"two")
    rig.content.feed_eof()
    await asyncio.sleep(0.12)
    assert rig.connection.sent == b"one"
    assert not rig.client.was_reset
    rig.connection.free.set()
    await pumping
    assert rig.connection.sent == b"onetwo"


async def test_a_client_that_leaves_meanwhile_is_noticed() -> None:
    rig = Rig()
    rig.connection.free.clear()
    rig.content.feed_data(b"one")
    pumping = asyncio.create_task(rig.pump())
    rig.client.has_left = True
    async with asyncio.timeout(1):
        while not rig.client.was_reset:  # noqa: ASYNC110 - the fake has no event
            await asyncio.sleep(0.01)
    pumping.cancel()
    await asyncio.wait({pumping})


async def test_a_client_that_pauses_too_long_is_told() -> None:
    rig = Rig(pause_seconds=0.02)
    with pytest.raises(ApiError) as caught:
        await rig.pump()
    assert (caught.value.status, caught.value.code) == (408, ErrorCode.REQUEST_TIMEOUT)


async def test_a_pause_shorter_than_that_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wings_proxy.upload._LOOK_SECONDS", 0.005)
    rig = Rig()
    pumping = asyncio.create_task(rig.pump())
    await asyncio.sleep(0.03)
    rig.content.feed_data(b"late")
    rig.content.feed_eof()
    await pumping
    assert rig.connection.sent == b"late"


async def test_a_body_that_stopped_being_http_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wings_proxy.upload._LOOK_SECONDS", 0.005)
    rig = Rig()
    rig.client.body_is_broken = True
    with pytest.raises(ApiError) as caught:
        await rig.pump()
    assert (caught.value.status, caught.value.code) == (400, ErrorCode.INVALID_REQUEST)


async def test_so_is_one_aiohttp_calls_malformed() -> None:
    from aiohttp.web_protocol import RequestPayloadError

    rig = Rig()
    rig.content.set_exception(RequestPayloadError("bad"))
    with pytest.raises(ApiError) as caught:
        await rig.pump()
    assert caught.value.code is ErrorCode.INVALID_REQUEST


async def test_a_small_body_is_read_whole() -> None:
    rig = Rig()
    rig.content.feed_data(b"one")
    rig.content.feed_data(b"two")
    rig.content.feed_eof()
    assert await rig.body.read_all() == b"onetwo"
