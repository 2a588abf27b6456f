"""Clients that do not wait for answers: whatever they ask, and however it comes, each answer comes and is theirs.

A sidecar of its own for each loop, a dozen clients at once; what they send, and in which pieces, is drawn by the seed
that a failure names. `make soak` has more of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.faults.program import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CONNECTIONS = int(os.environ.get("WINGS_SOAK_PIPELINES", "300"))
AT_ONCE = 12
MOST_REQUESTS = 70
"""On one connection: twice what aiohttp's parser keeps."""
LONGEST = 300_000
"""More than a piece, and than a body's queue holds."""
HANG_SECONDS = 20.0


@dataclass(frozen=True)
class Sent:
    """A request, and what its answer must be."""

    kind: str
    wire: bytes
    echoed: bytes | None = None
    """The body, if the engine is to tell of it."""
    head_only: bool = False

    def check(self, status: bytes, body: bytes) -> None:
        assert status == b"HTTP/1.1 200 OK"
        if self.echoed is not None:
            assert json.loads(body) == told(self.echoed)


def told(body: bytes) -> dict[str, int]:
    return {"length": len(body), "crc": zlib.crc32(body)}


async def tell(request: web.Request) -> web.Response:
    """Be an engine that tells what it was sent."""
    if request.path == "/v1/models":
        return web.json_response({"object": "list", "data": [{"id": "/models/tiny-qwen2", "owned_by": "vllm"}]})
    if request.method != "POST":
        return web.json_response({})
    try:
        return web.json_response(told(await request.read()))
    except ConnectionResetError:  # the test has failed already, and its client is gone
        return web.Response(status=500)


def any_body(draw: random.Random) -> bytes:
    edges = [0, 1, 20, 500, 4097, 60_000, 65_536, 65_537, 131_072, draw.randrange(LONGEST)]
    return draw.randbytes(draw.choice(edges))


def chunked(draw: random.Random, body: bytes) -> bytes:
    largest = draw.choice([1, 50, 1000, 70_000]) if len(body) < 9000 else draw.choice([50, 1000, 70_000])
    wire, start = [], 0
    while start < len(body):
        piece = body[start : start + draw.randint(1, largest)]
        wire.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        start += len(piece)
    return b"".join(wire) + b"0\r\n\r\n"


def any_request(draw: random.Random) -> Sent:
    """Draw one: for the engine or for us, with or without a body, of known length or not."""
    method, path = draw.choice([(b"POST", b"/v1/chat/completions")] * 5 + [(b"GET", b"/livez"), (b"HEAD", b"/livez")])
    head = b"%b %b HTTP/1.1\r\nHost: x\r\n" % (method, path)
    body = any_body(draw)
    form = draw.choice(["length", "chunks", "expect" if method == b"POST" else "none"])
    match form:
        case "none":
            wire = head + b"\r\n"
        case "chunks":
            wire = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(draw, body)
        case _:
            expect = b"Expect: 100-continue\r\n" if form == "expect" else b""
            wire = head + expect + b"Content-Length: %d\r\n\r\n" % len(body) + body
    echoed = body if method == b"POST" else None
    return Sent(f"{method.decode()} {form} {len(wire)}", wire, echoed, head_only=method == b"HEAD")


async def answer(reader: asyncio.StreamReader, request: Sent) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        status, *fields = head[:-4].split(b"\r\n")
        if status != b"HTTP/1.1 100 Continue":
            break
    lengths = [int(value) for name, _, value in (line.partition(b":") for line in fields) if name == b"Content-Length"]
    request.check(status, b"" if request.head_only else await reader.readexactly(lengths[0]))


async def converse(port: int, seed: str) -> Counter[str]:
    """Send many requests at once, and take their answers; return how many there were of each kind."""
    draw = random.Random(seed)
    requests = [any_request(draw) for _ in range(draw.randint(1, MOST_REQUESTS))]
    wire = b"".join(request.wire for request in requests)
    largest, pause = draw.choice([(100, 0.002), (5000, 0.01), (100_000, 0.1), (10**7, 0.0)])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        start = 0
        while start < len(wire):
            end = start + draw.randint(1, largest)
            writer.write(wire[start:end])
            await writer.drain()
            start = end
            if draw.random() < pause:
                await asyncio.sleep(draw.random() / 300)

    sending = asyncio.create_task(send(), name="client")
    try:
        for number, request in enumerate(requests):
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    await answer(reader, request)
            except (AssertionError, OSError, EOFError) as error:
                around = [request.kind for request in requests[max(0, number - 2) : number + 3]]
                raise AssertionError(f"{seed}: answer {number} of {len(requests)}, {around}: {error!r}") from error
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    return Counter(request.kind.rpartition(" ")[0] for request in requests)


async def test_pipelined_requests_of_every_kind_are_answered_in_turn(tmp_path: Path) -> None:
    loop = "uvloop" if isinstance(asyncio.get_running_loop(), uvloop.Loop) else "asyncio"
    engine = web.Application(client_max_size=2 * LONGEST)
    engine.router.add_route("*", "/{path:.*}", tell)
    seeds = iter([f"{loop}-{number}" for number in range(CONNECTIONS)])
    kinds: Counter[str] = Counter()

    async def clients(port: int) -> None:
        for seed in seeds:
            kinds.update(await converse(port, seed))

    async with TestServer(engine) as server:
        assert server.port is not None
        sidecar = program(tmp_path, server.port, WINGS_EVENT_LOOP=loop)
        running = await asyncio.to_thread(sidecar.__enter__)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(AT_ONCE):
                    group.create_task(clients(running.port), name=f"clients {number}")
        finally:
            await asyncio.to_thread(sidecar.__exit__, None, None, None)
    print(f"{loop}: {kinds.total()} requests on {CONNECTIONS} connections: {dict(sorted(kinds.items()))}")
    assert len(kinds) == 9
