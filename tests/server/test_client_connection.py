"""A client's connection: turns between the engine and our own endpoints, ends, and what it rests on in aiohttp."""

from __future__ import annotations

import asyncio
import json
import logging
from itertools import pairwise

import pytest

from tests.server.client_side import Parsed, echo, own, post
from tests.wire import OWN_BROKEN, ROUTE, EngineSide, proxy
from wings_proxy.proxy.exchange import AbortPhase

# ---- turns


@pytest.mark.parametrize("order", ["eo", "oe", "eeo", "ooe", "eoeo", "oeoe", "eoooeeeo"])
@pytest.mark.parametrize("together", [True, False])
async def test_answers_come_in_the_order_of_the_requests(order: str, together: bool) -> None:
    requests = [post(b"%d" % number) if who == "e" else own() for number, who in enumerate(order)]
    expected = [b"%d" % number if who == "e" else b"ours" for number, who in enumerate(order)]
    async with proxy(echo) as rig:
        client = await rig.client()
        if together:
            await client.send(b"".join(requests))
            assert [(await client.answer()).body for _ in order] == expected
        else:
            for request, answer in zip(requests, expected, strict=True):
                await client.send(request)
                assert (await client.answer()).body == answer


async def test_wherever_the_requests_are_cut_the_answers_are_the_same() -> None:
    wire = post(b"one") + own() + post(b"two")
    async with proxy(echo) as rig:
        client = await rig.client()
        for cut in range(1, len(wire), 7):
            for start, end in pairwise((0, cut, len(wire))):
                await client.send(wire[start:end])
                await asyncio.sleep(0)
            assert [(await client.answer()).body for _ in range(3)] == [b"one", b"ours", b"two"]


async def test_a_flood_of_requests_waits_in_the_kernel_and_is_answered() -> None:
    go = asyncio.Event()

    async def slow(engine: EngineSide) -> None:
        while True:
            request = await engine.request()
            await go.wait()
            await engine.answer(request.body)

    count = 1000
    async with proxy(slow) as rig:
        client = await rig.client()
        sending = asyncio.create_task(client.send(b"".join(post(b"%d" % number) for number in range(count))))
        await rig.busy()
        go.set()
        assert [(await client.answer()).body for _ in range(count)] == [b"%d" % number for number in range(count)]
        await sending


H2C = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
"""What nobody takes up; Java's client says it with every request."""


async def test_an_offer_of_another_protocol_behind_a_request_is_the_last_one() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(post(b"1") + post(b"2", H2C))
        assert [(await client.answer()).one(b"Connection") for _ in range(2)] == [None, b"close"]
        assert await client.at_end()


async def test_offers_one_after_the_other_are_requests_like_any_other() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        for number in range(3):
            request = post(b"%d" % number, H2C)
            await client.send(request[:-1])
            await asyncio.sleep(0)
            await client.send(request[-1:])
            answer = await client.answer()
            assert (answer.body, answer.one(b"Connection")) == (b"%d" % number, None)


@pytest.mark.parametrize("request_", [post(b"1", H2C), own().replace(b"\r\n\r\n", b"\r\n" + H2C + b"\r\n")])
async def test_what_came_in_one_piece_with_an_offer_is_not_waited_for(request_: bytes) -> None:
    """aiohttp drops it: the end of the connection says that it was not answered, and no rest of it is a request."""
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(request_ + b"POST %b HTTP/1.1\r\nHost: p\r\nContent-Length: 99\r\n\r\n" % ROUTE.encode())
        await client.send(post(b"smuggled"))
        assert (await client.answer()).one(b"Connection") == b"close"
        assert await client.at_end()
        assert not [request for request in rig.engine.requests if request.body == b"smuggled"]


async def test_what_came_in_one_piece_with_the_end_of_an_offers_body_is_not_waited_for() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        request = post(b"12345", H2C)
        await client.send(request[:-1])
        await rig.busy()
        await client.send(request[-1:] + post(b"lost"))
        assert (await client.answer()).one(b"Connection") == b"close"
        assert await client.at_end()


async def test_a_client_leaves_a_request_that_followed_one_of_ours() -> None:
    here, gone = asyncio.Event(), asyncio.Event()

    async def silent(engine: EngineSide) -> None:
        await engine.request()
        here.set()
        await engine.gone()
        gone.set()

    async with proxy(silent) as rig:
        client = await rig.client()
        await client.send(own() + post(b"1"))
        await here.wait()
        client.close()
        await gone.wait()
        await rig.idle()
        assert rig.metrics.aborts[AbortPhase.WAIT] == 1


async def test_only_our_own_endpoints_cost_a_task() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(post(b"1"))
        await client.answer()
        assert "client connection" not in {task.get_name() for task in asyncio.all_tasks()}
        await client.send(own())
        await client.answer()
        assert "client connection" in {task.get_name() for task in asyncio.all_tasks()}


# ---- heads that are known


async def test_a_head_seen_twice_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        await seen.learn(await rig.client())
        for body in (b"1", b"", b"22", b"x" * 5000):
            client = await rig.client()
            await client.send(post(body))
            assert (await client.answer()).body == body
    assert seen.pieces == []


async def test_a_body_written_after_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        for piece in (post(b"22")[:-2], b"2"):
            connection.data_received(piece)
            assert rig.inflight.count == 0
        connection.data_received(b"2")
        assert (await client.answer()).body == b"22"
    assert seen.pieces == []


async def test_a_body_that_takes_its_time_is_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        await seen.learn(client)
        await client.send(post(b"22")[:-1])
        await rig.busy()
        await client.send(b"2")
        assert (await client.answer()).body == b"22"
        await client.send(post(b"3"))
        assert (await client.answer()).body == b"3"
    assert seen.pieces == [post(b"22")[:-1], b"2"]


async def test_what_follows_a_body_too_closely_is_the_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        connection.data_received(post(b"22")[:-1])
        connection.data_received(b"2" + post(b"33"))
        assert [(await client.answer()).body for _ in range(2)] == [b"22", b"33"]
        await client.send(post(b"4") + post(b"5"))
        assert [(await client.answer()).body for _ in range(2)] == [b"4", b"5"]
    assert seen.pieces == [post(b"22") + post(b"33"), post(b"4") + post(b"5")]


async def test_a_client_that_leaves_while_its_body_is_awaited_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        connection.data_received(post(b"22")[:-1])
        assert connection.transport is not None
        connection.transport.abort()
        assert await client.reader.read() == b""
        assert rig.inflight.total == 3
        assert rig.metrics.aborts[AbortPhase.ADMISSION] == 1
    assert seen.pieces == [post(b"22")[:-1]]


async def test_a_long_body_is_streamed_though_its_head_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    long = b"x" * 300_000
    async with proxy(echo) as rig:
        client = await rig.client()
        await seen.learn(client)
        for body in (long, b"2"):
            await client.send(post(body))
            assert (await client.answer()).body == body
    assert b"".join(seen.pieces) == post(long)


@pytest.mark.parametrize(
    "length", [b"CONTENT-LENGTH: 1", b"Content-Length:1", b"Content-Length: 01", b"Content-Length:  1"]
)
async def test_a_length_written_otherwise_is_the_parsers(length: bytes) -> None:
    head, body = b"POST %b HTTP/1.1\r\nHost: p\r\n%b\r\n\r\n" % (ROUTE.encode(), length), b"1"
    async with proxy(echo) as rig:
        client = await rig.client()
        for _ in range(4):
            await client.send(head)
            await rig.busy()
            await client.send(body)
            assert (await client.answer()).body == body


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 1\r\nContent-Length: 9\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 1\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: 1\r\n : folded\r\n",
        b"Content-Length : 1\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 1,1\r\n",
        b"Content-Length: 1\x00\r\n",
    ],
)
async def test_what_the_parser_refuses_is_refused_also_where_its_like_is_known(lines: bytes) -> None:
    start = b"POST %b HTTP/1.1\r\nHost: p\r\n" % ROUTE.encode()
    async with proxy(echo) as rig:
        client = await rig.client()
        for _ in range(3):
            await client.send(post(b"1"))
            await client.answer()
        await client.send(start + lines + b"\r\n1" + own())
        assert (await client.answer()).status == 400
        assert await client.at_end()
        assert len(rig.engine.requests) == 3


async def test_a_request_of_the_reserve_is_refused_though_its_head_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Parsed(monkeypatch)
    async with proxy(echo) as rig:
        client = await rig.client()
        connection = await seen.learn(client)
        monkeypatch.setattr(connection._cap, "probes_only", lambda _: True)
        await client.send(post(b"22"))
        await client.answer()
    assert seen.pieces == [post(b"22")]


# ---- ends


@pytest.mark.parametrize("before", [b"", post(b"1"), own()])
async def test_an_idle_connection_is_closed(before: bytes) -> None:
    async with proxy(echo, keepalive_seconds=0.05) as rig:
        client = await rig.client()
        if before:
            await client.send(before)
            await client.answer()
        assert await client.at_end()


@pytest.mark.parametrize("before", [b"", own()])
async def test_one_with_a_request_is_not_idle(before: bytes) -> None:
    async def slow(engine: EngineSide) -> None:
        request = await engine.request()
        await asyncio.sleep(0.15)
        await engine.answer(request.body)

    async with proxy(slow, keepalive_seconds=0.05) as rig:
        client = await rig.client()
        await client.send(before + post(b"1"))
        if before:
            await client.answer()
        assert (await client.answer()).body == b"1"
        assert await client.at_end()


async def test_the_rest_of_a_refused_body_is_read_over_before_the_end() -> None:
    async with proxy(echo, max_body_bytes=1000) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 3000000\r\n\r\n")
        assert (await client.answer()).status == 413
        for _ in range(3):
            await client.send(b"x" * 1_000_000)
        assert await client.at_end()


async def test_a_refused_body_that_is_broken_ends_the_connection() -> None:
    async with proxy(echo, body_patience_seconds=60.0) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\nExpect: nonsense\r\n\r\n4\r\nbody\r\n"
        )
        assert (await client.answer()).status == 417
        await client.send(b"not a chunk\r\n")
        assert await client.at_end()


async def test_a_refused_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async with proxy(echo, max_body_bytes=3) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 4\r\n\r\n")
        assert (await client.answer()).status == 413
        assert await client.at_end()


async def test_a_client_may_leave_while_the_rest_is_read_over() -> None:
    async with proxy(echo, max_body_bytes=3) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 4\r\n\r\n")
        assert (await client.answer()).status == 413
        client.close()
        other = await rig.client()
        await other.post(b"ok")
        assert (await other.answer()).body == b"ok"


# ---- what is not HTTP, and what is broken


async def test_what_is_not_http_is_refused_in_our_shape(caplog: pytest.LogCaptureFixture) -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(post(b"1"))
        assert (await client.answer()).body == b"1"
        await client.send(b"a secret that is not HTTP\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.one(b"Server")) == (400, b"wings-infer")
        assert json.loads(answer.body)["error"]["code"] == "invalid_request"
        assert await client.at_end()
    assert "secret" not in caplog.text


async def test_a_handler_that_fails_is_a_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with proxy(echo) as rig:
            client = await rig.client()
            await client.send(own(OWN_BROKEN))
            answer = await client.answer()
            assert (answer.status, answer.one(b"Connection")) == (500, b"close")
            assert json.loads(answer.body)["error"]["code"] == "internal_error"
            assert await client.at_end()
    assert "ZeroDivisionError" in caplog.text


# ---- we are to stop


async def test_an_answer_that_begins_after_we_were_told_to_stop_says_that_it_is_the_last_one() -> None:
    """Also to a request that came before: its client would ask again where nobody listens any more."""
    go = asyncio.Event()

    async def late(engine: EngineSide) -> None:
        await engine.request()
        await go.wait()
        await engine.answer(b"late")

    async with proxy(late) as rig:
        client = await rig.client()
        await client.send(post(b"1"))
        await rig.busy()
        rig.forwarder.closing = True
        rig.runner.leave()
        go.set()
        answer = await client.answer()
        assert (answer.body, answer.one(b"Connection")) == (b"late", b"close")
        assert await client.at_end()


async def test_one_whose_head_is_out_is_followed_by_another() -> None:
    """Its client was not told, and may have asked already."""
    go = asyncio.Event()

    async def streams(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"1")
        await go.wait()
        await engine.send(b"0\r\n\r\n")
        await engine.request()
        await engine.answer(b"last")

    async with proxy(streams) as rig:
        client = await rig.client()
        await client.send(post(b"1"))
        head = await client.reader.readuntil(b"\n\n")
        assert b"Connection" not in head
        rig.forwarder.closing = True
        rig.runner.leave()
        go.set()
        await client.reader.readuntil(b"0\r\n\r\n")
        await client.send(post(b"2"))
        answer = await client.answer()
        assert (answer.body, answer.one(b"Connection")) == (b"last", b"close")
        assert await client.at_end()


async def test_nobody_is_there_to_be_told() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(own())
        await client.answer()
        rig.runner.leave()
        await client.send(post(b"1"))
        assert (await client.answer()).one(b"Connection") is None
