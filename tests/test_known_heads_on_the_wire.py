"""Past the parser, by a pattern, or through it: the same request comes to the same bytes, figures and log line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.wire import ROUTE, Client, EngineSide, Message, proxy
from wings_proxy.proxy import known_heads
from wings_proxy.proxy.known_heads import KnownHeads, Split
from wings_proxy.server.client_connection import ClientConnection

NAMES = {
    b"Accept": st.just(b"*/*"),
    b"Connection": st.sampled_from([b"keep-alive", b"close", b"X-Hop"]),
    b"X-Hop": st.just(b"1"),
    b"Authorization": st.from_regex(rb"\ABearer [!-~]{1,20}\Z"),
    b"Content-Encoding": st.just(b"gzip"),
    b"Cookie": st.from_regex(rb"\A[!-~]{1,20}\Z"),
    b"Expect": st.just(b"100-continue"),
    b"Origin": st.just(b"http://page"),
    b"traceparent": st.from_regex(rb"\A00-[1-9a-f]{32}-[1-9a-f]{16}-01\Z"),
    b"tracestate": st.from_regex(rb"\A[ -~]{1,20}\Z"),
    b"X-Hostile": st.from_regex(rb"\A[\t -\xff]{0,20}\Z"),
}


# What nobody takes for a head: the connection is closed, and the answer says so.
NO_HEAD = (
    b"POST %b HTTP/1.1\r\nHost: p\r\nX-Request-Id: 1\r\nX-Hostile: \x7f\r\nContent-Length: 0\r\n\r\n" % ROUTE.encode()
)


@dataclass
class Requests:
    """Two requests of one client, alike but for some values; the body of the second comes in pieces."""

    first: bytes
    second: bytes
    cuts: list[int]


@st.composite
def two_requests(draw: st.DrawFn) -> Requests:
    names = draw(st.lists(st.sampled_from(sorted(NAMES)), max_size=5))

    def one() -> bytes:
        body = draw(st.binary(max_size=200))
        number = draw(st.integers(0, 2**64))
        lines = b"".join(b"%b: %b\r\n" % (name, draw(NAMES[name])) for name in names)
        return b"POST %b HTTP/1.1\r\nHost: p\r\nX-Request-Id: %x\r\n%bContent-Length: %d\r\n\r\n%b" % (
            ROUTE.encode(),
            number,
            lines,
            len(body),
            body,
        )

    first, second = one(), one()
    cuts = draw(st.lists(st.integers(1, len(second) - 1), max_size=2))
    return Requests(first, second, [0, *sorted(cuts), len(second)])


@dataclass
class Outcome:
    """What came of the second request, wherever it can be seen."""

    engine: list[Message]
    answer: Message
    lines: list[dict[str, Any]]
    figures: tuple[Any, ...]


async def echo(engine: EngineSide) -> None:
    while True:
        request = await engine.request()
        await engine.answer(request.body)


async def final_answer(client: Client) -> Message:
    """Read answers until one is not interim."""
    while (answer := await client.answer()).status < 200:
        pass
    return answer


async def outcome(requests: Requests) -> Outcome:
    async with proxy(echo) as rig:
        for _ in range(3):
            client = await rig.client()
            await client.send(requests.first)
            await final_answer(client)
        client = await rig.client()
        await client.send(requests.first)
        if b"close" in (await final_answer(client)).all(b"Connection"):
            client = await rig.client()
        for start, end in pairwise(requests.cuts):
            await client.send(requests.second[start:end])
            await asyncio.sleep(0)
        answer = await final_answer(client)
        # aiohttp's refusals say when; two runs may lie on two sides of a second.
        answer.fields = [(name, b"" if name == b"Date" else value) for name, value in answer.fields]
        await rig.idle()
        route = rig.metrics.route(ROUTE)
        lines = [json.loads(line) for line in rig.access_lines]
        for line in lines:
            for name in ("time", "duration_seconds", "ttft_seconds"):
                del line[name]
        figures = (
            dict(route.requests),
            sum(route.duration.counts),
            route.received_bytes,
            route.sent_bytes,
            dict(rig.metrics.aborts),
            dict(rig.metrics.api_errors),
            dict(rig.metrics.upstream_faults),
            rig.inflight.total,
        )
        for request in rig.engine.requests:
            assert request.fields.pop(0) == (b"Host", rig.forwarder.host)  # a port of its own each time
        return Outcome(rig.engine.requests, answer, lines, figures)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@settings(max_examples=examples(25))
@given(requests=two_requests())
@example(requests=Requests(NO_HEAD, NO_HEAD.replace(b"\x7f", b"1"), [0, 40, len(NO_HEAD)]))
def test_both_paths_come_to_the_same(requests: Requests, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    def run() -> Outcome:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(outcome(requests))

    known = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_heads, "HOT_USES", 1)
        hot = run()
        patch.setattr(KnownHeads, "get", lambda _heads, _template: None)
        parsed = run()
    assert known == parsed
    assert hot == parsed


def test_and_these_requests_do_take_all_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take = ClientConnection._take_known
    monkeypatch.setattr(known_heads, "HOT_USES", 1)

    def noted(connection: ClientConnection, split: Split, data: bytes) -> bool:
        taken.append(take(connection, split, data))
        return taken[-1]

    monkeypatch.setattr(ClientConnection, "_take_known", noted)
    request = b"POST %b HTTP/1.1\r\nHost: p\r\nContent-Length: 1\r\n\r\n1" % ROUTE.encode()
    asyncio.run(outcome(Requests(request, request, [0, len(request)])))
    assert taken == [False, False, True, True]  # and the fifth is taken by its pattern
