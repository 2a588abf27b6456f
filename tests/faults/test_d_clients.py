"""D. Clients."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import Fault, Outcome, StartEngine
from tests.faults.scene import CHAT, CHAT_BODY, STREAM, ask, connect, everything, get, metric, newest, scene
from tests.sidecar import RUN, Sidecar
from tests.wire import Client
from wings_proxy.handover.volume import Volume

FOREVER = {"tokens": 100_000, "token_seconds": 0.01}


def post(body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in (b"Content-Type: application/json", *fields))
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (CHAT, len(body), lines, body)


STREAMED = post(json.dumps({**STREAM, "max_tokens": 5000}).encode())
PLAIN = post(json.dumps(CHAT_BODY).encode())


async def begun(running: Sidecar, sent: bytes = STREAMED) -> Client:
    client = await connect(running)
    await client.send(sent)
    return client


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_d41_a_client_that_leaves_in_a_stream_stops_the_engine(
    fake_engine: StartEngine, tmp_path: Path, how: str
) -> None:
    async with scene(fake_engine, tmp_path, engine=FOREVER) as (running, engine):
        client = await begun(running)
        await client.reader.readuntil(b"data: ")
        {"close": client.close, "reset": client.reset, "half": client.writer.write_eof}[how]()
        await engine.until(lambda: engine.running == 0)
        await engine.until(lambda: newest(engine).outcome is Outcome.LEFT)
        while not await metric(running, 'wings_client_aborts_total{phase="stream"}'):  # noqa: ASYNC110 - a page rings no bell
            await asyncio.sleep(0.01)
        client.close()


async def test_d42_a_client_that_leaves_before_the_first_byte_stops_the_engine(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.HANG}) as (running, engine):
        client = await begun(running)
        await engine.until(lambda: any(request.method == "POST" for request in engine.requests))
        client.close()
        await engine.until(lambda: all(r.outcome is not Outcome.OPEN for r in engine.requests))
        while not await metric(running, 'wings_client_aborts_total{phase="wait"}'):  # noqa: ASYNC110 - a page rings no bell
            await asyncio.sleep(0.01)


async def test_d43_half_an_upload_generates_nothing(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):
        client = await begun(running, STREAMED[:-20])
        client.close()
        assert (await get(running, b"/v1/models")).status == 200
        assert all(request.events == 0 for request in engine.requests)


async def test_d44_a_client_that_never_reads_is_cut_and_nobody_else_is_slowed(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    switches = {"fault": Fault.HUGE_EVENT, "huge_bytes": 32 * 1024 * 1024, "fault_times": 1}
    async with scene(fake_engine, tmp_path, engine=switches, WINGS_WRITE_STALL_SECONDS="0.3") as (running, engine):
        never_reads = await connect(running, receive_buffer=4096)
        await never_reads.send(STREAMED)
        await engine.until(lambda: any(request.method == "POST" for request in engine.requests))
        assert (await ask(running, PLAIN)).status == 200
        while not await metric(running, 'wings_client_aborts_total{phase="stall"}'):  # noqa: ASYNC110 - a page rings no bell
            await asyncio.sleep(0.02)
        await engine.until(lambda: engine.running == 0)
        never_reads.close()


@pytest.mark.slow
async def test_d44_a_client_that_reads_slowly_is_not_one_that_never_reads(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    switches = {"fault": Fault.HUGE_EVENT, "huge_bytes": 32 * 1024 * 1024, "fault_times": 1}
    loop = asyncio.get_running_loop()
    async with scene(fake_engine, tmp_path, engine=switches, WINGS_WRITE_STALL_SECONDS="3") as (running, _):
        with socket.socket() as slow:
            slow.setblocking(False)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(slow, ("127.0.0.1", running.port))
            await loop.sock_sendall(slow, STREAMED)
            # As one that reads 5 kB a second under the default of 60 s, for three times as long as one may be silent.
            began, read = loop.time(), 0
            while (seconds := loop.time() - began) < 9:
                while read < seconds * 100_000:
                    piece = await loop.sock_recv(slow, 4096)
                    assert piece
                    read += len(piece)
                await asyncio.sleep(0.02)
        assert await metric(running, 'wings_client_aborts_total{phase="stall"}') == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nA: ", b"408"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{", b"408"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{", b"408"),
        (b"", b""),
    ],
)
async def test_d45_slow_heads_slow_bodies_and_silence_are_cut(
    fake_engine: StartEngine, tmp_path: Path, sent: bytes, status: bytes
) -> None:
    limits: dict[str, Any] = {"WINGS_HEADER_TIMEOUT_SECONDS": "0.2", "WINGS_BODY_TIMEOUT_SECONDS": "0.2"}
    async with scene(fake_engine, tmp_path, **limits) as (running, _):
        client = await connect(running)
        await client.send(sent)
        if not sent:
            assert await client.at_end()
        else:
            answer = await client.answer()
            assert answer.status == int(status)
            assert b'"code": "request_timeout"' in answer.body
            assert await metric(running, 'wings_api_errors_total{code="request_timeout"}') == 1
        client.close()


async def test_d45_a_dripping_body_does_not_hold_a_slot_for_ever(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_BODY_TIMEOUT_SECONDS="0.3") as (running, _):
        client = await begun(running, b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" % CHAT)

        async def drip() -> None:
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip(), name="drip")
        assert (await client.answer()).status == 408
        dripping.cancel()
        await asyncio.wait([dripping])
        client.close()


async def test_d46_at_the_cap_idle_connections_make_room(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_MAX_CONNECTIONS="20") as (running, _):
        idle = [await connect(running) for _ in range(60)]
        assert (await get(running, b"/livez")).status == 200
        assert (await get(running, b"/v1/models")).status == 200
        assert await idle[0].at_end()
        for client in idle:
            client.close()


async def test_d46_probes_are_answered_when_nothing_else_is(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.HANG}, WINGS_MAX_CONNECTIONS="5") as (
        running,
        engine,
    ):
        busy = [await begun(running) for _ in range(5)]
        await engine.until(lambda: len([r for r in engine.requests if r.method == "POST"]) >= 4)
        assert (await ask(running, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).status == 200
        for client in busy:
            client.close()


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_d47_pipelined_requests_are_answered_in_order(
    fake_engine: StartEngine, tmp_path: Path, count: int
) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        client = await connect(running)
        one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n"
        sending = asyncio.create_task(client.send(b"".join(one % n for n in range(count))), name="sender")
        assert [int((await client.answer()).one(b"X-Request-Id") or -1) for _ in range(count)] == list(range(count))
        await sending
        client.close()


async def test_d47_resets_and_tls_leave_no_trace(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        for _ in range(100):
            (await connect(running)).reset()
        assert b" 400 " in await everything(running, bytes.fromhex("160301020001000001fc0303") + bytes(100))
        assert (await get(running, b"/v1/models")).status == 200


HEAD = b"%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (PLAIN.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"), 200),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 200),
        (HEAD % (b"HEAD /livez", b""), 200),
        (HEAD % (b"TRACE /v1/models", b""), 405),
        (HEAD % (b"CONNECT 127.0.0.1:22", b""), 404),
        (HEAD % (b"OPTIONS *", b""), 404),
        (HEAD % (b"GET /v1/models", b"Upgrade: websocket\r\nConnection: Upgrade\r\n"), 501),
        (HEAD % (b"GET /v1/models", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"), 200),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /v1/models HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"GET /v1/models\r\n\r\n", 400),
        (HEAD % (b"GET /v1/models", b"Expect: 42\r\n"), 417),
        (HEAD % (b"GET /livez", b"Expect: 42\r\n"), 417),
    ],
)
async def test_d48_every_kind_of_request_has_an_answer(
    fake_engine: StartEngine, tmp_path: Path, sent: bytes, status: int
) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        answer = await ask(running, sent)
        assert answer.status == status
        if status >= 400:
            assert json.loads(answer.body)["error"]["message"]


async def test_d48_chunked_and_gzip_uploads_and_100_continue(fake_engine: StartEngine, tmp_path: Path) -> None:
    body = json.dumps(CHAT_BODY).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n%b\r\n0\r\nT: x\r\n\r\n"
    async with scene(fake_engine, tmp_path) as (running, engine):
        assert (await ask(running, chunked % (CHAT, len(body), body))).status == 200
        assert newest(engine).body == body
        await ask(running, post(b"\x1f\x8bnot looked into", b"Content-Encoding: gzip"))
        assert newest(engine).body == b"\x1f\x8bnot looked into"
        client = await connect(running)
        head, _, _ = PLAIN.partition(b"\r\n\r\n")
        await client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.answer()).status == 100
        await client.send(body)
        assert (await client.answer()).status == 200
        client.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD % (b"GET /v1/models", b"A: " + b"x" * 60_000 + b"\r\n"), 400),
        (HEAD % (b"GET /v1/models", b"A: x\r\n" * 200), 400),
        (HEAD % (b"GET /v1/models?" + b"x" * 16_384, b""), 400),
        (post(b"", b"Content-Length: 99999999999"), 400),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 70000000\r\n\r\n" % CHAT, 413),
    ],
)
async def test_d49_what_is_huge_is_refused_before_it_is_kept(
    fake_engine: StartEngine, tmp_path: Path, sent: bytes, status: int
) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):
        answer = await ask(running, sent)
        assert answer.status == status
        assert answer.one(b"Connection") == b"close" or answer.start.startswith(b"HTTP/1.0")
        assert not [request for request in engine.requests if request.method == "POST"]


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":1,"a":2}', b'{"a":NaN}', b"\xef\xbb\xbf{}", b'"\\ud800"', b"\xff\x00"]
)
async def test_d49_a_strange_body_is_the_engines_to_judge(
    fake_engine: StartEngine, tmp_path: Path, body: bytes
) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):
        answer = await ask(running, post(body))
        assert answer.one(b"X-Wings-Origin") is None
        assert newest(engine).body == body


@pytest.mark.parametrize("query", [b"a=%2F%7e%25%32%46+%C3;b", b"x=/../..//", b"%00"])
async def test_d50_path_and_query_arrive_as_they_were_sent(
    fake_engine: StartEngine, tmp_path: Path, query: bytes
) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):
        assert (await get(running, b"/v1/models?" + query)).status == 200
        start = b"GET /v1/models?" + query + b" HTTP/1.1\r\n"
        assert [request for request in engine.requests if request.head.startswith(start)]


@pytest.mark.parametrize(
    "target", [b"/v1/../metrics", b"/v1/%2e%2e/health", b"//v1/models", b"/V1/models", b"/v1/models;x", b"/v1//models"]
)
async def test_d50_no_spelling_is_another_route(fake_engine: StartEngine, tmp_path: Path, target: bytes) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):
        answer = await get(running, target)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "not_found")
        assert not [request for request in engine.requests if request.target.encode() == target]
        assert await metric(running, 'wings_api_errors_total{code="not_found"}') == 1


SMUGGLED = b"GET /v1/models?smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5, 6",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 5 5",
        b"Content-Length : 5",
        b"Content-Length: \x0b5",
        b"Content-Length: -1",
        b"Content-Length:",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding: \x00chunked",
        b"Transfer-Encoding\r\n : chunked",
        b"X: y\r\n Transfer-Encoding: chunked",
        b" Transfer-Encoding: chunked",
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\nContent-Length: 6",
        b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: chunked;q=1",
        b"Host: other",
    ],
)
async def test_d51_two_readers_never_see_two_requests(fake_engine: StartEngine, tmp_path: Path, fields: bytes) -> None:
    """Refused for its head: whether one reader finds a body behind it, another a request, or nothing comes at all."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (CHAT, fields)
    async with scene(fake_engine, tmp_path) as (running, engine):
        assert (await ask(running, head)).status == 400
        for behind in (SMUGGLED, b"0\r\n\r\n" + SMUGGLED):
            received = await everything(running, head + behind)
            assert received.split(b" ")[1] == b"400"
            assert received.count(b"HTTP/1.") == 1 + received.count(b"is not HTTP/1.1")
        assert not [request for request in engine.requests if "smuggled" in request.target or request.method == "POST"]


async def test_d51_it_is_the_spelling_that_is_refused(fake_engine: StartEngine, tmp_path: Path) -> None:
    """The same bytes with a harmless field are two requests."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Harmless: y\r\n\r\n" % CHAT
    async with scene(fake_engine, tmp_path) as (running, engine):
        received = await everything(running, head + SMUGGLED)
        assert received.count(b"HTTP/1.1 ") == 2
        assert [request.method for request in engine.requests if request.target.startswith("/v1/chat")] == ["POST"]
        assert len([request for request in engine.requests if "smuggled" in request.target]) == 1


async def test_d52_five_hundred_clients_at_the_moment_of_ready(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The herd is let in by one hold, not by five hundred; the timed version is in `test_load.py`."""
    holds, take_hold = list[str](), Volume.take_hold

    async def noted(volume: Volume, run: str) -> None:
        holds.append(run)
        await take_hold(volume, run)

    monkeypatch.setattr(Volume, "take_hold", noted)
    async with scene(fake_engine, tmp_path, ready=False, engine={"loading_seconds": 0.2, "max_num_seqs": 1000}) as (
        running,
        _,
    ):
        running.status("running")

        async def client() -> int:
            while True:
                status = (await get(running, b"/v1/models")).status
                if status != 503:
                    return status
                await asyncio.sleep(0.05)

        assert await asyncio.gather(*(client() for _ in range(500))) == [200] * 500
        assert holds == [RUN]
