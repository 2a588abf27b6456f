"""The byte path as its two sides see it, over real sockets: what crosses, what is refused, how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence

import pytest

from tests.wire import ROUTE, EngineSide, Message, proxy, read_body, read_head
from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.exchange import AbortPhase, UpstreamFault
from wings_proxy.proxy.http1 import MAX_HEAD_BYTES

BIG = bytes(range(256)) * 4096  # 1 MiB


async def echo(engine: EngineSide) -> None:
    """Answer every request with its own body."""
    while True:
        request = await engine.request()
        await engine.answer(request.body, fields=b"Content-Type: application/json\r\n")


def code_of(answer: Message) -> str:
    assert answer.one(b"X-Wings-Origin") == b"proxy"
    code = json.loads(answer.body)["error"]["code"]
    assert isinstance(code, str)
    return code


# ---- what crosses


async def test_a_plain_request_and_its_answer() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(b'{"a": 1}', fields=b"Authorization: Bearer sk-1\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b'{"a": 1}')
        [request] = rig.engine.requests
        assert request.start == b"POST /v1/chat/completions HTTP/1.1"
        assert request.one(b"Host") == b"127.0.0.1:%d" % rig.engine.port
        assert request.one(b"Authorization") == b"Bearer sk-1"
        assert request.one(b"X-Request-Id") == answer.one(b"X-Request-Id")


async def test_a_clean_request_id_is_the_clients() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(fields=b"x-request-id: my-id_7\r\n")
        assert (await client.answer()).one(b"X-Request-Id") == b"my-id_7"
        assert rig.engine.requests[0].one(b"X-Request-Id") == b"my-id_7"


async def test_target_and_fields_cross_byte_for_byte() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(
            target=b"/v1//a%2Fb/../%7e?q=%25%32%46&x=a+b;c=%C3",
            fields=b"X-A: 1\r\nx-a: 2\r\nX-Raw: \xc3\xa9\xff\r\n"
            b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n",
        )
        await client.answer()
        [request] = rig.engine.requests
        assert request.start == b"POST /v1//a%2Fb/../%7e?q=%25%32%46&x=a+b;c=%C3 HTTP/1.1"
        assert request.all(b"X-A") == [b"1", b"2"]
        assert request.one(b"X-Raw") == b"\xc3\xa9\xff"
        assert request.one(b"X-Hop") is request.one(b"TE") is request.one(b"Connection") is None


async def test_the_engines_errors_and_encodings_pass_untouched() -> None:
    async def teapot(engine: EngineSide) -> None:
        await engine.request()
        await engine.answer(
            b"\x1f\x8b not really gzip",
            status=b"418 I'm \xe9",
            fields=b"Content-Encoding: gzip\r\nRetry-After: 9\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n",
        )

    async with proxy(teapot) as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert answer.start == b"HTTP/1.1 418 I'm \xe9"
        assert answer.body == b"\x1f\x8b not really gzip"
        assert answer.one(b"Content-Encoding") == b"gzip"
        assert answer.all(b"Set-Cookie") == [b"a", b"b"]
        assert answer.one(b"X-Wings-Origin") is None


async def test_connections_are_kept_on_both_sides() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        for body in (b"1", b"2", b"3"):
            await client.post(body)
            assert (await client.answer()).body == body
        assert len(rig.engine.connections) == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        for number in range(20):
            await client.post(b"%d" % number)
        assert [(await client.answer()).body for _ in range(20)] == [b"%d" % number for number in range(20)]


async def test_a_body_that_comes_after_its_head() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 4\r\n\r\n")
        await client.send(b"bo")
        await asyncio.sleep(0.01)
        assert rig.engine.connections == []
        await client.send(b"dy")
        assert (await client.answer()).body == b"body"


async def test_a_large_body_is_streamed_both_ways() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        for _ in range(2):
            sending = asyncio.create_task(client.post(BIG))
            answer = await client.answer()
            await sending
            assert answer.body == BIG
        assert len(rig.engine.connections) == 1


@pytest.mark.parametrize("size", [0, 5, 100_000])
async def test_a_chunked_body_is_framed_anew(size: int) -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n")
        body = BIG[:size]
        for start in range(0, size, 9999):
            piece = body[start : start + 9999]
            await client.send(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
        await client.send(b"0\r\nX-Trailer: 1\r\n\r\n")
        assert (await client.answer()).body == body
        [request] = rig.engine.requests
        assert request.one(b"Content-Length") is None
        assert all(b";" not in chunk for chunk in request.chunks)


async def test_a_get_has_no_body() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.get()
        assert (await client.answer()).status == 200
        assert rig.engine.requests[0].start == b"GET /v1/models HTTP/1.1"


@pytest.mark.parametrize("head", [b"204 No Content\r\n", b"304 Not Modified\r\nETag: x\r\n"])
async def test_answers_without_a_body(head: bytes) -> None:
    async def bodiless(engine: EngineSide) -> None:
        while True:
            await engine.request()
            await engine.send(b"HTTP/1.1 " + head + b"\r\n")

    async with proxy(bodiless) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.get()
            assert (await client.answer()).body == b""
        assert len(rig.engine.connections) == 1


async def test_head_gets_a_head() -> None:
    async def head_only(engine: EngineSide) -> None:
        while True:
            await engine.request()
            await engine.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")

    async with proxy(head_only) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.get(method=b"HEAD")
            assert (await client.answer(head_request=True)).one(b"Content-Length") == b"99"
        assert len(rig.engine.connections) == 1


async def test_a_body_that_ends_with_the_engines_connection() -> None:
    async def old(engine: EngineSide) -> None:
        await engine.request()
        await engine.send(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello")
        engine.close()

    async with proxy(old) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.get()
            answer = await client.answer()
            assert (answer.body, answer.complete) == (b"hello", True)
        assert len(rig.engine.connections) == 2


async def test_events_arrive_one_by_one() -> None:
    heard = asyncio.Event()

    async def stream(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        await heard.wait()
        await engine.event(b"two")
        await engine.event(b"[DONE]")
        await engine.send(b"0\r\n\r\n")
        await engine.gone()

    async with proxy(stream) as rig:
        client = await rig.client()
        await client.post()
        assert b"X-Accel-Buffering: no\r\n" in await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readuntil(b"\n\n\r\n") == b"b\r\ndata: one\n\n\r\n"
        heard.set()
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert rest == b"b\r\ndata: two\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        assert rig.metrics.route(ROUTE).requests[200] == 1


async def test_two_hundred_streams_at_once() -> None:
    everybody = asyncio.Event()
    arrived = 0

    async def stream(engine: EngineSide) -> None:
        nonlocal arrived
        request = await engine.request()
        arrived += 1
        if arrived == 200:
            everybody.set()
        await everybody.wait()
        await engine.start_events()
        await engine.event(request.body)
        await engine.send(b"0\r\n\r\n")

    async with proxy(stream) as rig:
        clients = [await rig.client() for _ in range(200)]
        for number, client in enumerate(clients):
            await client.post(b"%d" % number)
        for number, client in enumerate(clients):
            assert (await client.answer()).body == b"data: %d\n\n" % number
        await rig.idle()


# ---- old and odd clients


async def test_an_http_1_0_client_gets_no_chunks() -> None:
    async def stream(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        await engine.send(b"0\r\n\r\n")

    async with proxy(stream) as rig:
        client = await rig.client()
        await client.send(b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert answer.one(b"Transfer-Encoding") is None
        assert answer.one(b"Connection") == b"close"
        assert answer.body == b"data: one\n\n"


async def test_an_http_1_0_client_may_keep_its_connection() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.send(b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer()).one(b"Connection") == b"keep-alive"
        await client.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
        assert (await client.answer()).one(b"Connection") == b"close"
        assert await client.at_end()


async def test_a_client_that_wants_to_close_is_let_go() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(fields=b"Connection: close\r\n")
        assert (await client.answer()).one(b"Connection") == b"close"
        assert await client.at_end()


async def test_a_client_is_told_to_continue() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n")
        assert (await client.answer()).start == b"HTTP/1.1 100 Continue"
        await client.send(b"body")
        assert (await client.answer()).body == b"body"
        assert rig.engine.requests[0].one(b"Expect") is None


async def test_a_client_is_refused_before_it_is_told_to_continue() -> None:
    async with proxy(echo, max_body_bytes=3) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.one(b"Connection")) == (413, b"close")
        assert rig.engine.connections == []


async def test_another_expectation_fails() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(fields=b"Expect: the-unexpected\r\n")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (417, "expectation_failed")


async def test_a_web_socket_is_refused() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.get(fields=b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (501, "upgrade_not_supported")
        assert await client.at_end()


async def test_an_offer_to_speak_http_2_is_ignored() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(
            b"body", fields=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
        )
        assert (await client.answer()).body == b"body"
        [request] = rig.engine.requests
        assert request.one(b"Upgrade") is request.one(b"HTTP2-Settings") is None


@pytest.mark.parametrize("target", [b"http://other:1/v1/models", b"*"])
async def test_a_target_that_is_no_path_is_refused(target: bytes) -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.get(target=target, method=b"OPTIONS")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (400, "invalid_request")
        assert rig.engine.connections == []


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (b"TRACE /v1/models HTTP/1.1\r\n\r\n", "method_not_allowed"),
        (b"CONNECT /v1/models HTTP/1.1\r\n\r\n", "method_not_allowed"),
        (
            b"POST /v1/x HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "invalid_request",
        ),
    ],
)
async def test_what_would_turn_us_against_the_engine_ends_the_connection(refused: bytes, code: str) -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(refused.replace(b"\r\n", b"\r\nHost: p\r\n", 1))
        await client.get()
        answer = await client.answer()
        assert (code_of(answer), answer.one(b"Connection")) == (code, b"close")
        assert await client.at_end()
        assert rig.engine.connections == []


async def test_another_transfer_coding_is_refused() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
        assert code_of(await client.answer()) == "invalid_request"


# ---- limits


async def test_an_announced_body_over_the_limit_is_refused_at_once() -> None:
    async with proxy(echo, max_body_bytes=1000) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 1001\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (413, "request_too_large")
        assert answer.one(b"Connection") == b"close"
        assert rig.engine.connections == []


async def test_a_body_is_counted_while_it_is_streamed() -> None:
    async with proxy(echo, max_body_bytes=1000) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        while not rig.engine.requests:  # noqa: ASYNC110 - begun, and counted so far
            await asyncio.sleep(0)
        await client.send(b"1\r\nx\r\n")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (413, "request_too_large")
        await rig.engine.finished()
        assert not rig.engine.requests[0].complete


async def test_a_chunked_body_that_came_at_once_is_counted_too() -> None:
    async with proxy(echo, max_body_bytes=3) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
        assert code_of(await client.answer()) == "request_too_large"
        assert rig.engine.connections == []


async def test_a_malformed_body_never_ends_at_the_engine() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
        while not rig.engine.requests:  # noqa: ASYNC110 - begun
            await asyncio.sleep(0)
        await client.send(b"zz\r\n")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (400, "invalid_request")
        await rig.engine.finished()
        assert not rig.engine.requests[0].complete


@pytest.mark.parametrize("length", [10, 100_000])
async def test_a_client_that_stops_inside_its_body_is_given_up(length: int) -> None:
    async with proxy(echo, body_patience_seconds=0.05) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: %d\r\n\r\n12345" % length)
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (408, "request_timeout")


async def test_requests_over_the_limit_are_told_when_to_come_back() -> None:
    release = asyncio.Event()

    async def slow(engine: EngineSide) -> None:
        await engine.request()
        await release.wait()
        await engine.answer()

    async with proxy(slow, max_inflight=1) as rig:
        first, second = await rig.client(), await rig.client()
        await first.post()
        await rig.busy()
        await second.post()
        answer = await second.answer()
        assert (answer.status, code_of(answer), answer.one(b"Retry-After")) == (429, "overloaded", b"1")
        release.set()
        assert (await first.answer()).status == 200
        await second.post()
        assert (await second.answer()).status == 200


async def test_the_gate_decides() -> None:
    async with proxy(echo) as rig:
        rig.gate.refusal = ApiError(503, ErrorCode.ENGINE_NOT_READY, "loading", retry_after=4)
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert (answer.status, code_of(answer), answer.one(b"Retry-After")) == (503, "engine_not_ready", b"4")
        assert rig.inflight.count == 0
        rig.gate.refusal = None
        await client.post()
        assert (await client.answer()).status == 200


async def test_answers_end_connections_while_draining() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        rig.forwarder.closing = True
        await client.post()
        assert (await client.answer()).one(b"Connection") == b"close"
        assert await client.at_end()


async def test_keys_are_asked_for_and_not_passed_on() -> None:
    def only_sk_1(keys: Sequence[bytes]) -> ApiError | None:
        if list(keys) == [b"sk-1", b"sk-1"]:
            return None
        return ApiError(401, ErrorCode.UNAUTHORIZED, "no")

    async with proxy(echo, authorize=only_sk_1, engine_authorization=b"Bearer engine") as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (401, "unauthorized")
        await client.post(fields=b"Authorization: Bearer sk-1\r\nX-Api-Key: sk-1\r\n")
        assert (await client.answer()).status == 200
        [request] = rig.engine.requests
        assert request.all(b"Authorization") == [b"Bearer engine"]
        assert request.one(b"X-Api-Key") is None


# ---- faults of the engine


async def test_no_engine_is_a_503() -> None:
    async with proxy(echo) as rig:
        await rig.engine.stop()
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert (answer.status, code_of(answer), answer.one(b"Retry-After")) == (503, "engine_unreachable", b"1")
        assert rig.faults == [UpstreamFault.CONNECT_REFUSED]
        assert rig.metrics.upstream_faults[UpstreamFault.CONNECT_REFUSED] == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
    ids=lambda answer: answer[:40].decode("latin-1"),
)
async def test_no_usable_answer_is_a_502(answer: bytes) -> None:
    async def broken(engine: EngineSide) -> None:
        await engine.request()
        await engine.send(answer)
        engine.close()

    async with proxy(broken) as rig:
        client = await rig.client()
        await client.post()
        got = await client.answer()
        assert (got.status, code_of(got)) == (502, "upstream_error")
        assert len(rig.engine.connections) == 1


@pytest.mark.parametrize("inside_an_event", [False, True])
async def test_an_engine_that_dies_in_a_stream_is_told_to_the_client(inside_an_event: bool) -> None:
    async def die(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        if inside_an_event:
            await engine.send(b"20\r\ndata: half")
        await asyncio.sleep(0.01)
        engine.reset()

    async with proxy(die) as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert not answer.complete
        if inside_an_event:
            assert answer.body == b"data: one\n\ndata: half"
        else:
            first, error, rest = answer.body.split(b"\n\n")
            assert (first, rest) == (b"data: one", b"")
            assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
        assert rig.metrics.upstream_faults[UpstreamFault.TRUNCATED] == 1


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked", b"Server: x"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_any_other_cut_answer_is_visibly_cut(framing: bytes, version: bytes) -> None:
    begun = asyncio.Event()

    async def die(engine: EngineSide) -> None:
        await engine.request()
        await engine.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + b"5\r\nhello\r\n")
        await begun.wait()
        engine.reset()

    async with proxy(die) as rig:
        client = await rig.client()
        await client.send(b"GET /v1/x HTTP/%b\r\nHost: p\r\n\r\n" % version)
        answer = await read_head(client.reader)
        # A reset takes along what was not read yet.
        begun.set()
        await read_body(client.reader, answer, until_close=True)
        assert not answer.complete


async def test_a_late_first_byte_is_a_504() -> None:
    async def silent(engine: EngineSide) -> None:
        await engine.request()
        await engine.gone()

    async with proxy(silent, first_byte_timeout_seconds=0.05) as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (504, "upstream_timeout")


async def test_an_engine_that_dies_in_a_stream_of_known_length_is_no_whole_answer() -> None:
    """An event of ours would fill up the length that was told, and pass for the rest."""

    async def die(engine: EngineSide) -> None:
        await engine.request()
        await engine.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100\r\n\r\ndata: one\n\n"
        )
        engine.close()

    async with proxy(die) as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert not answer.complete
        assert b"error" not in answer.body


async def test_a_stream_that_falls_silent_is_ended_honestly() -> None:
    async def falls_silent(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        await engine.gone()

    async with proxy(falls_silent, idle_timeout_seconds=0.05) as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert not answer.complete
        assert b'"code": "upstream_timeout"' in answer.body


@pytest.mark.parametrize("announced", [b"Content-Length: 20000000", b"Transfer-Encoding: chunked"])
async def test_an_answer_before_the_body_was_read_reaches_the_client(announced: bytes) -> None:
    async def too_large(engine: EngineSide) -> None:
        await engine.head()
        await engine.answer(b"too large", status=b"413 Too Large")
        engine.writer.get_extra_info("socket")  # the body stays unread: closing now resets
        engine.close()

    async with proxy(too_large) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\n" + announced + b"\r\n\r\n")

        async def upload() -> None:
            try:
                for _ in range(20):
                    await client.send(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")
            except ConnectionError:
                pass  # the proxy need not read it all

        sending = asyncio.create_task(upload())
        answer = await client.answer()
        assert (answer.status, answer.body, answer.one(b"Connection")) == (413, b"too large", b"close")
        sending.cancel()
        await asyncio.wait({sending})


async def test_every_stream_can_be_cut_at_the_drain_deadline() -> None:
    async def endless(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        await engine.gone()

    async with proxy(endless) as rig:
        client = await rig.client()
        await client.post()
        await client.reader.readuntil(b"one\n\n")
        rig.forwarder.cut_all()
        assert b'"code": "draining"' in await client.reader.read()
        await rig.idle()


# ---- connections that die between requests


def answers_then(end: str) -> object:
    """Answer the first request, read the second, and end the connection."""

    async def script(engine: EngineSide) -> None:
        await engine.request()
        await engine.answer(b"first")
        await engine.request()
        engine.reset() if end == "reset" else engine.close()

    return script


async def test_a_request_that_met_a_closed_socket_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        async with proxy(echo) as rig:
            take = rig.pool.take
            monkeypatch.setattr(rig.pool, "_address", listener.getsockname())
            client = await rig.client()
            await client.post(b"1")
            peer, _ = await loop.sock_accept(listener)
            await loop.sock_recv(peer, 65536)
            await loop.sock_sendall(peer, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
            assert (await client.answer()).body == b"first"

            def take_while_it_closes() -> object:
                connection = take()
                peer.close()
                return connection

            monkeypatch.undo()
            monkeypatch.setattr(rig.pool, "take", take_while_it_closes)
            await client.post(b"2")
            assert (await client.answer()).body == b"2"
            assert rig.metrics.retries == 1


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_post_the_engine_may_have_run_is_not_sent_again(end: str) -> None:
    async with proxy(answers_then(end), echo) as rig:  # type: ignore[arg-type]
        client = await rig.client()
        await client.post(b"1")
        assert (await client.answer()).body == b"first"
        await client.post(b"2")
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (502, "upstream_error")
        assert len(rig.engine.connections) == 1
        assert rig.metrics.retries == 0


async def test_a_get_is_sent_again_all_the_same() -> None:
    async with proxy(answers_then("close"), echo) as rig:  # type: ignore[arg-type]
        client = await rig.client()
        await client.get()
        assert (await client.answer()).body == b"first"
        await client.get()
        assert (await client.answer()).status == 200


async def test_a_first_request_is_never_sent_again() -> None:
    async def slam(engine: EngineSide) -> None:
        await engine.request()
        engine.reset()

    async with proxy(slam, echo) as rig:
        client = await rig.client()
        await client.get()
        assert (await client.answer()).status == 502
        assert len(rig.engine.connections) == 1


async def test_stray_bytes_never_reach_the_next_client() -> None:
    async def poison(engine: EngineSide) -> None:
        await engine.request()
        await engine.answer(b"mine")
        await engine.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        await engine.gone()

    async with proxy(poison, echo) as rig:
        for body, expected in ((b"a", b"mine"), (b"b", b"b")):
            client = await rig.client()
            await client.post(body)
            assert (await client.answer()).body == expected


async def test_an_engine_that_closes_after_each_answer_is_no_trouble() -> None:
    async def once(engine: EngineSide) -> None:
        request = await engine.request()
        await engine.answer(request.body)
        engine.close()

    async with proxy(once) as rig:
        client = await rig.client()
        for number in range(50):
            await client.post(b"%d" % number)
            assert (await client.answer()).body == b"%d" % number


# ---- clients that leave


async def soon(event: asyncio.Event) -> None:
    """Wait while the loop goes round some times, far fewer than in 100 ms: what waits for a timer is too late.

    Bytes and ends cross loopback at once, so how busy the machine is makes no difference.
    """
    for _ in range(300):
        if event.is_set():
            return
        await asyncio.sleep(0)
    raise AssertionError("not noticed without a timer")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("phase", "request_bytes"),
    [
        (AbortPhase.UPLOAD, b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 100000\r\n\r\nhalf"),
        (AbortPhase.UPLOAD, b"POST /v1/x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        (AbortPhase.WAIT, b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 4\r\n\r\nbody"),
        (AbortPhase.STREAM, b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 4\r\n\r\nbody"),
    ],
)
async def test_a_client_that_leaves_takes_its_request_along(how: str, phase: AbortPhase, request_bytes: bytes) -> None:
    here, gone = asyncio.Event(), asyncio.Event()

    async def engine_side(engine: EngineSide) -> None:
        await engine.head()
        if phase is AbortPhase.STREAM:
            await engine.start_events()
            await engine.event(b"one")
        here.set()
        await engine.gone()
        gone.set()

    async with proxy(engine_side) as rig:
        client = await rig.client()
        await client.send(request_bytes)
        await here.wait()
        if phase is AbortPhase.STREAM:
            await client.reader.readuntil(b"one\n\n")
        getattr(client, how)()
        await soon(gone)
        await rig.idle()
        assert rig.metrics.aborts[phase] == 1
        assert rig.metrics.route(ROUTE).requests[499] == 1
        assert rig.inflight.at_engine == 0


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_client_that_leaves_on_done_had_its_whole_answer(version: bytes) -> None:
    # openai-python's way; between `[DONE]` and the last chunk engines take their time.
    gone = asyncio.Event()

    async def engine_side(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        await engine.event(b"[DONE]")
        await engine.gone()
        gone.set()

    async with proxy(engine_side) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/%b\r\nHost: p\r\nContent-Length: 4\r\n\r\nbody" % version)
        await client.reader.readuntil(b"data: [DONE]\n\n")
        client.close()
        await soon(gone)
        await rig.idle()
        assert sum(rig.metrics.aborts.values()) == 0
        assert rig.metrics.route(ROUTE).requests[200] == 1
        assert rig.inflight.at_engine == 0


@pytest.mark.parametrize("announced", [b"Content-Length: 100000000", b"Transfer-Encoding: chunked"])
async def test_a_client_that_leaves_while_the_engine_does_not_read(announced: bytes) -> None:
    here, look, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def deaf(engine: EngineSide) -> None:
        await engine.head()
        engine.writer.transport.pause_reading()  # type: ignore[attr-defined]
        here.set()
        await look.wait()
        engine.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await engine.gone()
        gone.set()

    async with proxy(deaf, max_body_bytes=10**9) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\n" + announced + b"\r\n\r\n")
        await here.wait()
        filling = asyncio.create_task(client.send((b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 20))
        await asyncio.sleep(0.2)
        assert not filling.done()
        filling.cancel()
        await asyncio.wait({filling})
        client.reset()
        await rig.idle()
        look.set()
        await gone.wait()
        assert rig.metrics.aborts[AbortPhase.UPLOAD] == 1


async def test_a_half_sent_small_body_generates_nothing() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: p\r\nContent-Length: 100\r\n\r\nhalf")
        await rig.busy()
        client.close()
        await rig.idle()
        assert rig.metrics.aborts[AbortPhase.ADMISSION] == 1
        assert rig.engine.connections == []


async def test_a_client_that_leaves_while_the_gate_decides() -> None:
    asked = asyncio.Event()

    class Slow:
        open = False

        async def admit(self) -> ApiError | None:
            asked.set()
            await asyncio.Event().wait()
            return None

    async with proxy(echo) as rig:
        rig.forwarder.gate = Slow()
        client = await rig.client()
        await client.post()
        await asked.wait()
        client.close()
        await rig.idle()
        assert rig.metrics.aborts[AbortPhase.ADMISSION] == 1


async def test_a_client_that_leaves_while_we_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = asyncio.Event()

    async def never() -> None:
        connecting.set()
        await asyncio.Event().wait()

    async with proxy(echo) as rig:
        monkeypatch.setattr(rig.pool, "connect", never)
        client = await rig.client()
        await client.post()
        await connecting.wait()
        client.close()
        await rig.idle()
        assert rig.metrics.aborts[AbortPhase.CONNECT] == 1


# ---- clients that do not read

EVENT = b"x" * 50_000


async def flood(engine: EngineSide) -> None:
    await engine.request()
    await engine.start_events()
    for _ in range(400):
        await engine.event(EVENT)
    await engine.send(b"0\r\n\r\n")
    await engine.gone()


async def test_a_client_that_never_reads_is_cut() -> None:
    async with proxy(flood, write_stall_seconds=0.2) as rig:
        client = await rig.client(receive_buffer=65536)
        await client.post()
        await rig.busy()
        await rig.idle()
        assert rig.metrics.aborts[AbortPhase.STALL] == 1
        assert rig.metrics.route(ROUTE).requests[499] == 1
        assert rig.metrics.route(ROUTE).sent_bytes < 15_000_000


async def test_a_client_that_is_refused_and_never_reads_is_not_answered_for_ever() -> None:
    questions = 30_000  # their answers are 7 MB, more than the kernel holds for a client
    async with proxy(flood, write_stall_seconds=0.2) as rig:
        client = await rig.client(receive_buffer=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\nExpect: x\r\n\r\n" * questions)
        answered = rig.metrics.route(ROUTE).requests
        while not rig.metrics.aborts[AbortPhase.STALL] and sum(answered.values()) < questions:  # noqa: ASYNC110
            await asyncio.sleep(0)  # nothing tells of either end
        assert rig.metrics.aborts[AbortPhase.STALL] == 1
        assert 0 < answered[417] < questions


async def test_a_slow_client_gets_everything_in_the_end() -> None:
    async with proxy(flood) as rig:
        # Much smaller, and the kernel moves a segment of loopback's size every 200 ms.
        slow = await rig.client(receive_buffer=200_000)
        await slow.post()
        # With nobody reading, the relay must come to hold the engine back, long before all 20 MB are here.
        while not any(relay.paused for relay in rig.forwarder.relays):
            assert rig.inflight.count or not rig.inflight.total, "everything was taken in"
            await asyncio.sleep(0.001)
        answer = await slow.answer()
        assert answer.complete
        assert answer.body.count(b"data: ") == 400


# ---- what is written down


async def test_the_access_log_says_how_it_went_and_no_secret() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        await client.post(
            b"a secret prompt",
            fields=b"Authorization: Bearer secret\r\nX-Request-Id: id-7\r\n",
            target=b"/v1/chat/completions?q=secret",
        )
        await client.answer()
        await rig.idle()
    [line] = rig.access_lines
    fields = json.loads(line)
    assert fields["request_id"] == "id-7"
    assert fields["route"] == ROUTE
    assert (fields["method"], fields["status"], fields["events"]) == ("POST", 200, 0)
    assert (fields["request_bytes"], fields["response_bytes"]) == (15, 15)
    assert 0 < fields["ttft_seconds"] <= fields["duration_seconds"]
    assert "secret" not in line


async def test_a_fault_of_our_own_is_a_500_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    async with proxy(echo) as rig:
        monkeypatch.setattr(rig.pool, "take", broken)
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert (answer.status, code_of(answer)) == (500, "internal_error")
        assert await client.at_end()
        assert rig.inflight.count == 0
    assert "failed in the proxy" in caplog.text
