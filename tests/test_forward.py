"""The byte path as its clients see it, over real sockets."""

from __future__ import annotations

import asyncio
import json

from tests.wire import EngineSide, proxy
from wings_proxy.exchange import AbortPhase


async def echo(engine: EngineSide) -> None:
    """Answer every request with its own body."""
    while True:
        request = await engine.request()
        await engine.answer(request.body, fields=b"Content-Type: application/json\r\n")


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


async def test_a_second_request_uses_the_same_connections() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        for body in (b"1", b"2", b"3"):
            await client.post(body)
            assert (await client.answer()).body == body
        assert len(rig.engine.connections) == 1


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
        assert (
            await client.reader.readuntil(b"0\r\n\r\n") == b"b\r\ndata: two\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        )
        assert rig.metrics.route("/v1/chat/completions").requests[200] == 1


async def test_an_engine_that_dies_in_a_stream_is_told_to_the_client() -> None:
    async def die(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(b"one")
        engine.reset()

    async with proxy(die) as rig:
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert not answer.complete
        first, error, rest = answer.body.replace(b"\n\n\n\n", b"\n\n").split(b"\n\n")
        assert first == b"data: one"
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
        assert rest == b""


async def test_no_engine_is_a_503() -> None:
    async with proxy(echo) as rig:
        await rig.engine.stop()
        client = await rig.client()
        await client.post()
        answer = await client.answer()
        assert answer.status == 503
        assert answer.one(b"X-Wings-Origin") == b"proxy"
        assert json.loads(answer.body)["error"]["code"] == "engine_unreachable"


async def test_a_client_that_leaves_a_silent_stream_ends_it_at_the_engine() -> None:
    gone = asyncio.Event()

    async def silent(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.gone()
        gone.set()

    async with proxy(silent) as rig:
        client = await rig.client()
        await client.post()
        await client.reader.readuntil(b"\r\n\r\n")
        client.close()
        await asyncio.wait_for(gone.wait(), 0.5)
        await rig.idle()
        assert rig.metrics.aborts[AbortPhase.STREAM] == 1


async def test_a_large_body_is_streamed_up() -> None:
    async with proxy(echo) as rig:
        client = await rig.client()
        body = bytes(range(256)) * 4096 * 3
        sending = asyncio.create_task(client.post(body))
        answer = await client.answer()
        await sending
        assert answer.body == body
