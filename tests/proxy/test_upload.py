"""The request's body on its way up."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.downstream import Downstream
from wings_proxy.proxy.exchange import Exchange
from wings_proxy.proxy.upload import Body, pump_body
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.proxy.upstream import Connection


class FakeClient:
    def __init__(self) -> None:
        self.body_is_broken = False
        self.has_left = False
        self.was_reset = False
        self._held = False

    def hold(self) -> None:
        self._held = True

    def read_on(self) -> None:
        self._held = False

    def is_held(self) -> bool:
        return self._held

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
        self.pace = UploadPace(loop, shares=1)
        self.body = Body(self.content, cast("Downstream", self.client), pause_seconds, self.pace)

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


async def test_each_piece_waits_for_its_share_of_the_turn() -> None:
    rig = Rig()
    rig.content.feed_data(b"one")
    rig.content.feed_eof()
    order: list[bytes] = []
    for _ in range(2):
        rig.pace.ask(lambda: order.append(rig.connection.sent))
    pumping = asyncio.create_task(rig.pump())
    await asyncio.sleep(0)  # the second of those; the task has begun, and waits
    assert order == [b"", b""]
    assert rig.connection.sent == b""
    await pumping
    assert rig.connection.sent == b"one"


@pytest.mark.parametrize("given_up", [False, True])
async def test_while_it_waits_for_its_share_nothing_comes_from_its_client(given_up: bool) -> None:
    """Afterwards the client is listened to, whatever became of its body: it may leave, and the rest is read over."""
    rig = Rig()
    rig.content.feed_data(b"one")
    rig.content.feed_eof()
    for _ in range(3):
        rig.pace.ask(lambda: None)
    pumping = asyncio.create_task(rig.pump())
    while not rig.client.is_held():  # noqa: ASYNC110 - nobody but a test waits for this
        await asyncio.sleep(0)
    if given_up:
        pumping.cancel()
    await asyncio.wait([pumping])
    assert not rig.client.is_held()
    assert rig.connection.sent == (b"" if given_up else b"one")


async def test_the_end_waits_for_no_share() -> None:
    """An engine that has it all may answer before: then the connection would be closed as behind an early answer."""
    rig = Rig()
    rig.content.feed_data(b"one")
    rig.content.feed_eof()

    def greedy() -> None:
        rig.pace.ask(greedy)

    pumping = asyncio.create_task(rig.pump())
    await asyncio.sleep(0)  # it took the share of this turn
    greedy()
    assert rig.connection.sent == b"one"
    assert pumping.done()


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
    async with asyncio.timeout(40):
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
    monkeypatch.setattr("wings_proxy.proxy.upload._LOOK_SECONDS", 0.005)
    rig = Rig()
    pumping = asyncio.create_task(rig.pump())
    await asyncio.sleep(0.03)
    rig.content.feed_data(b"late")
    rig.content.feed_eof()
    await pumping
    assert rig.connection.sent == b"late"


async def test_a_body_that_stopped_being_http_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wings_proxy.proxy.upload._LOOK_SECONDS", 0.005)
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
