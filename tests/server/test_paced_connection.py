"""What the parser of a client's connection is fed: slices in turn, nothing that nobody reads, and its count kept."""

from __future__ import annotations

import asyncio
import contextlib
import random
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from tests.server.client_side import Parsed, echo, in_chunks, own, post, silent
from tests.wire import EngineSide, proxy
from wings_proxy.proxy.exchange import AbortPhase
from wings_proxy.proxy.upload_pace import SHARES
from wings_proxy.server import paced_connection
from wings_proxy.server.own_answers import AnsweringConnection
from wings_proxy.server.paced_connection import SLICE_BYTES

# ---- slices


async def test_many_small_chunks_are_parsed_a_little_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing more is read meanwhile. Parsed at once they would keep everybody else waiting."""
    seen = Parsed(monkeypatch)
    body = bytes(range(256)) * 1000
    wire = in_chunks(body, 100)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        transport = connection.transport
        assert transport is not None
        connection.data_received(wire)
        assert [len(piece) for piece in seen.pieces] == [SLICE_BYTES] * SHARES
        assert not transport.is_reading()
        assert (await client.answer()).body == body
        assert transport.is_reading()
        await client.send(post(b"3"))
        assert (await client.answer()).body == b"3"
    assert b"".join(seen.pieces) == wire + post(b"3")


async def test_no_slice_is_parsed_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed, a byte that is a chunk is some hundred bytes."""
    seen = Parsed(monkeypatch)
    go = asyncio.Event()

    async def slow(engine: EngineSide) -> None:
        while True:
            request = await engine.request()
            if request.body == b"first":
                await go.wait()
            await engine.answer(request.body)

    async with proxy(slow) as rig:
        client = await rig.client()
        go.set()
        connection = await seen.learn(client)
        go.clear()
        wire = post(b"first", b"X-New: 1\r\n") + in_chunks(b"y" * 50_000) + post(b"last")
        connection.data_received(wire)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(map(len, seen.pieces)) == 4 * SLICE_BYTES  # 4096 chunks, and the slice these end in
        assert connection.transport is not None
        assert not connection.transport.is_reading()
        go.set()
        assert [(await client.answer()).body for _ in range(3)] == [b"first", b"y" * 50_000, b"last"]
        assert connection.transport.is_reading()


async def test_slices_of_several_connections_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_connection, "SLICE_BYTES", 1000)
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        clients = [await rig.client() for _ in range(2)]
        connections = [await seen.learn(client, b"X-%d: 1\r\n" % number) for number, client in enumerate(clients)]
        bodies = [letter * 50_000 for letter in (b"a", b"b")]
        for connection, body in zip(connections, bodies, strict=True):
            connection.data_received(in_chunks(body))
        assert [(await client.answer()).body for client in clients] == bodies
    order = "".join("a" if b"\r\na\r\n" in piece else "b" for piece in seen.pieces)
    assert order.startswith("a" * SHARES + "abab")


async def test_a_body_of_known_length_is_parsed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the parser nothing."""
    seen = Parsed(monkeypatch)
    body = b"x" * 200_000
    wire = post(body, b"X-New: 1\r\n")
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        connection.data_received(wire[:150_000])
        connection.data_received(wire[150_000:])
        assert (await client.answer()).body == body
    assert [len(piece) for piece in seen.pieces[:3]] == [SLICE_BYTES, 150_000 - SLICE_BYTES, len(wire) - 150_000]


@pytest.mark.parametrize("size", [1, 7, 64, 300])
async def test_wherever_slices_are_cut_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(paced_connection, "SLICE_BYTES", size)
    requests = [post(b"one"), in_chunks(b"two", 2), own(), post(b"x" * 3000), in_chunks(b"y" * 99), own(), post(b"")]
    async with proxy(echo) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.send(b"".join(requests))
            answers = [(await client.answer()).body for _ in requests]
            assert answers == [b"one", b"two", b"ours", b"x" * 3000, b"y" * 99, b"ours", b""]


async def test_what_comes_beside_waiting_slices_waits_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    wire = in_chunks(b"z" * 60_000)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        connection.data_received(wire[:200_000])
        connection.data_received(wire[200_000:] + post(b"2"))
        assert [(await client.answer()).body for _ in range(2)] == [b"z" * 60_000, b"2"]


async def test_a_client_that_leaves_takes_its_slices_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        connection.data_received(in_chunks(b"z" * 600_000))
        assert connection.transport is not None
        connection.transport.abort()
        assert await client.at_end()
        await rig.idle()
        parsed = len(seen.pieces)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(seen.pieces) == parsed < 10 * SHARES
        assert rig.metrics.aborts[AbortPhase.ADMISSION] + rig.metrics.aborts[AbortPhase.UPLOAD] == 1


async def test_a_connection_that_is_given_up_parses_no_further_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        connection.data_received(in_chunks(b"z" * 60_000).replace(b"1\r\nz", b"no\r\n", 1))
        assert (await client.answer()).status == 400
        assert await client.at_end()


# ---- the parser's count of requests that wait


MOST = 32
"""Requests that the parser keeps parsed."""


async def test_bodies_that_come_late_are_not_counted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser would stop at every request, and keep all that follows, however much it is."""
    seen = Parsed(monkeypatch)
    late = own().replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n1"), post(b"1", b"X-New: 1\r\n")
    go = asyncio.Event()

    async def slow(engine: EngineSide) -> None:
        while True:
            request = await engine.request()
            if request.body == b"0":
                await go.wait()
            await engine.answer(request.body)

    async with proxy(slow) as rig:
        client = await rig.client()
        for request in late * (MOST + 1):
            await client.send(request[:-1])
            await asyncio.sleep(0.002)  # so that most bodies come late; of one that does not there is nothing to see
            await client.send(request[-1:])
            await client.answer()
        assert seen.connection is not None
        seen.connection.data_received(b"".join(post(b"%d" % number) for number in range(100)))
        assert len(seen.connection._messages) == MOST - 1  # and the first is on its way
        go.set()
        assert [(await client.answer()).body for _ in range(100)] == [b"%d" % number for number in range(100)]


async def test_what_the_parser_kept_is_parsed_though_nothing_more_comes() -> None:
    """One was taken before its end: so it stops one short of where aiohttp would see to it."""
    async with proxy(echo) as rig:
        client = await rig.client()
        request = post(b"first", b"X-New: 1\r\n")
        await client.send(request[:-1])
        await rig.busy()
        await client.send(request[-1:] + b"".join(post(b"%d" % number) for number in range(MOST)))
        bodies = [(await client.answer()).body for _ in range(1 + MOST)]
        assert bodies == [b"first", *(b"%d" % number for number in range(MOST))]


@pytest.mark.parametrize("piece", [1400, 9000, 70_000])
async def test_many_requests_of_every_kind_are_answered_however_they_come(piece: int) -> None:
    """More than the parser keeps, and in pieces, so that some are begun before their ends."""
    kinds = [
        (own(), b"ours"),
        (post(b"x" * 300, b"X-New: 1\r\n"), b"x" * 300),
        (in_chunks(b"y" * 500, 7), b"y" * 500),
        (post(b"z" * 5000), b"z" * 5000),
        (post(b""), b""),
    ]
    chosen = random.Random(piece).choices(kinds, k=150)
    wire = b"".join(request for request, _ in chosen)
    async with proxy(echo) as rig:
        client = await rig.client()

        async def send() -> None:
            for start in range(0, len(wire), piece):
                await client.send(wire[start : start + piece])
                await asyncio.sleep(0)

        sending = asyncio.create_task(send(), name="client")
        for _, body in chosen:
            assert (await client.answer()).body == body
        await sending


async def test_a_body_of_very_many_chunks_does_not_stop_the_next_one() -> None:
    """At its end aiohttp reads on; its parser, told to stop after 4096 chunks nobody took, would do so a body later."""
    go = asyncio.Event()

    async def slow(engine: EngineSide) -> None:
        while True:
            request = await engine.request()
            if request.body == b"first":
                await go.wait()
            await engine.answer(request.body)

    async with proxy(slow) as rig:
        client = await rig.client()
        chunks = in_chunks(b"y" * 4097)
        await client.send(post(b"first") + chunks + post(b"last", b"X-New: 1\r\n"))
        await rig.busy()
        go.set()
        bodies = [(await client.answer()).body for _ in range(3)]
        assert bodies == [b"first", b"y" * 4097, b"last"]


async def test_a_body_behind_an_answer_of_ours_is_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between an answer of aiohttp's and its next turn nobody seems to be at work."""
    body = b"x" * 100_000
    request = post(body, b"X-New: 1\r\n")
    rest: list[bytes] = [request[-50_000:], request[-100_000:-50_000]]
    answer = AnsweringConnection._answer

    async def answered(connection: AnsweringConnection, *request: Any) -> tuple[web.StreamResponse, bool]:
        try:
            return await answer(connection, *request)
        finally:
            if rest:
                connection._loop.call_soon(connection.data_received, rest.pop())

    monkeypatch.setattr(AnsweringConnection, "_answer", answered)
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(own() + own() + request[:-100_000])
        assert [(await client.answer()).body for _ in range(3)] == [b"ours", b"ours", body]


# ---- behind what nothing is read


TRAILER = b"X-Smuggled: yes\r\n"
CHUNKED = in_chunks(b"body", 2)
WITH_TRAILER = CHUNKED[:-2] + TRAILER + b"\r\n"
SPELLINGS = {
    "a trailer": WITH_TRAILER,
    "two": CHUNKED[:-2] + b"A: b\r\n" + TRAILER + b"\r\n",
    "an extension": CHUNKED[:-5] + b"0;a=b\r\n" + TRAILER + b"\r\n",
    "more zeros": CHUNKED[:-5] + b"00\r\n" + TRAILER + b"\r\n",
    "a body that looks like its end": in_chunks(b"a\r\n0\r\n\r\n", 8)[:-2] + TRAILER + b"\r\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("cut", ["no cut", "behind", "inside", "every byte"])
async def test_a_trailer_is_no_field_of_the_next_request(spelling: str, cut: str) -> None:
    """aiohttp's parser makes it one. Where a front shares a connection among clients, it is somebody else's."""
    first = SPELLINGS[spelling]
    wire = first + post(b"next")
    cuts = {"no cut": [], "behind": [len(first)], "inside": [len(first) - 9], "every byte": range(1, len(wire))}[cut]
    async with proxy(echo) as rig:
        client = await rig.client()
        for start, end in pairwise((0, *cuts, len(wire))):
            with contextlib.suppress(ConnectionError):
                await client.send(wire[start:end])
            for _ in range(5):
                await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        assert await client.at_end()
        assert [request.one(b"X-Smuggled") for request in rig.engine.requests] == [None]


async def test_nor_of_the_next_one_on_a_connection_to_our_own_endpoints() -> None:
    chunked = own().replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n")
    for ending, goes_on in ((b"\r\n", True), (TRAILER + b"\r\n", False)):
        async with proxy(echo) as rig:
            client = await rig.client()
            await client.send(chunked + ending)
            assert (await client.answer()).body == b"ours"
            if goes_on:
                await client.send(post(b"next"))
                assert (await client.answer()).body == b"next"
            else:
                assert await client.at_end()


@pytest.mark.parametrize("body", [b"", b"body", b"\r\n0\r\n\r\n", b"0\r\n\r\n0\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 5, 7, 1000])
async def test_behind_a_body_in_chunks_without_trailers_the_next_request_is_answered(body: bytes, size: int) -> None:
    """However both are cut."""
    wire = in_chunks(body, size) + post(b"next") + in_chunks(body, size) + post(b"last")
    async with proxy(echo) as rig:
        for cut in range(1, len(wire), max(1, len(wire) // 50)):
            client = await rig.client()
            for start, end in pairwise((0, cut, len(wire))):
                await client.send(wire[start:end])
                await asyncio.sleep(0)
            assert [(await client.answer()).body for _ in range(4)] == [body, b"next", body, b"last"]
            client.close()


async def test_of_a_body_full_of_what_looks_like_its_end_not_every_one_is_tried() -> None:
    """Each costs a call of the parser. Nothing is lost, but that the connection may end behind it."""
    body = b"\r\n0\r\n\r\n" * 1000
    async with proxy(echo) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.send(in_chunks(body, 1000))
            assert (await client.answer()).body == body
        await client.send(in_chunks(body, 1000) + post(b"next"))
        answer = await client.answer()
        assert (answer.body, answer.one(b"Connection")) == (body, b"close")
        assert await client.at_end()


async def test_where_the_parser_may_have_stopped_nobody_knows_what_it_kept() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        many = [b"%d" % number for number in range(MOST - 1)]
        await client.send(b"".join(post(body) for body in many) + WITH_TRAILER + post(b"next") + CHUNKED)
        assert [(await client.answer()).body for _ in many] == many
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await client.answer()
        assert {request.one(b"X-Smuggled") for request in rig.engine.requests} == {None}


async def test_few_requests_wait_for_their_turns_the_rest_is_not_read() -> None:
    """The kernel keeps them, and then the client."""
    head = post(b"", b"".join(b"F%d: %b\r\n" % (number, b"x" * 1000) for number in range(60)))
    async with proxy(silent) as rig:
        client = await rig.client()
        sending = asyncio.create_task(client.send(head * 100), name="client")
        await rig.busy()
        [connection] = rig.connections
        assert connection.transport is not None
        while connection.transport.is_reading() or not connection._buffer_paused:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(connection._messages) == 4
        assert len(connection._unparsed) < 300_000
        sending.cancel()


async def test_slices_wait_for_requests_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    go = asyncio.Event()

    async def slow(engine: EngineSide) -> None:
        while True:
            request = await engine.request()
            if request.body == b"first":
                await go.wait()
            await engine.answer(request.body)

    async with proxy(slow) as rig:
        client = await rig.client()
        go.set()
        connection = await seen.learn(client)
        go.clear()
        bodies = [b"%04d" % number * 1000 for number in range(10)]
        wire = post(b"first", b"X-New: 1\r\n") + b"".join(post(body) for body in bodies)
        connection.data_received(wire)
        for _ in range(50):
            await asyncio.sleep(0)
        assert sum(map(len, seen.pieces)) < len(wire) * 2 // 3
        go.set()
        assert [(await client.answer()).body for _ in range(11)] == [b"first", *bodies]
