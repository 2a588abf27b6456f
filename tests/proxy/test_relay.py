"""The engine's answer on its way: clean framing out of whatever comes in, and an honest end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.proxy.admission import ForwardSettings
from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.downstream import Downstream
from wings_proxy.proxy.exchange import Exchange, UpstreamFault
from wings_proxy.proxy.http1 import encode_chunk
from wings_proxy.proxy.inflight import Inflight
from wings_proxy.proxy.outbox import Outbox
from wings_proxy.proxy.relay import HEAD_SECONDS, MAX_INTERIM_RESPONSES, Relay
from wings_proxy.proxy.request_metrics import RouteMetrics
from wings_proxy.proxy.upstream import Connection, UpstreamError


class FakeLoop:
    """A clock and timers that run when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_later(self, delay: float, callback: object) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self.timers.append(timer)  # type: ignore[arg-type]
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def end_turn(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [t for t in cast("list[FakeTimer]", self.timers) if not t.cancelled and t.when <= end]:
            timer = min(due, key=lambda t: t.when)
            timer.cancelled = True
            self.now = timer.when
            timer.callback()  # type: ignore[operator]
        self.now = end

    @property
    def armed(self) -> int:
        return sum(not timer.cancelled for timer in cast("list[FakeTimer]", self.timers))


class FakeTimer:
    def __init__(self, when: float, callback: object) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeConnection:
    def __init__(self) -> None:
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class FakeClient:
    def __init__(self, *, http10: bool = False) -> None:
        self.http10 = http10
        self.keep_alive = True
        self.sent = b""
        self.extra = b""
        self.writes = 0
        self.was_reset = False

    @property
    def connection_field(self) -> bytes | None:
        return None if self.keep_alive else b"close"

    def write(self, data: bytes) -> None:
        self.sent += data
        self.writes += 1

    def reset(self) -> None:
        self.was_reset = True


class Rig:
    """A relay between fakes."""

    def __init__(self, *, http10: bool = False, method: str = "POST", **settings: float) -> None:
        self.loop = FakeLoop()
        self.ends = 0
        self.written_at_end = b""
        self.connection = FakeConnection()
        self.client = FakeClient(http10=http10)
        self.exchange = Exchange("/v1/x", method, "id-1", self.loop.now)
        self.instruments = RouteMetrics()
        self.inflight = Inflight(self.loop.time)
        self.relay = Relay(
            cast("asyncio.AbstractEventLoop", self.loop),
            self.loop.time,
            cast("Connection", self.connection),
            cast("Downstream", self.client),
            self.exchange,
            self.instruments,
            self.inflight,
            Outbox(cast("asyncio.AbstractEventLoop", self.loop)),
            ForwardSettings(engine_port=8000, **settings),  # type: ignore[arg-type]
            self.ended,
        )
        self.relay.request_sent = True

    def ended(self) -> None:
        assert self.relay.done
        self.ends += 1
        self.written_at_end = self.client.sent

    def feed(self, *pieces: bytes) -> None:
        """Bring *pieces*, each in a turn of its own."""
        for piece in pieces:
            self.relay.data_received(piece)
            self.loop.end_turn()

    def reusable(self) -> bool:
        return self.relay.reusable

    def reading(self) -> bool:
        return self.connection.reading

    def paused(self) -> bool:
        return self.relay.paused

    @property
    def head(self) -> bytes:
        return self.client.sent.split(b"\r\n\r\n", 1)[0]

    @property
    def body(self) -> bytes:
        return self.client.sent.split(b"\r\n\r\n", 1)[1]

    @property
    def fault(self) -> UpstreamFault | None:
        return self.relay.error.fault if isinstance(self.relay.error, UpstreamError) else None


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TO_CLOSE = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"


# ---- framing


def test_head_and_body_that_came_together_leave_together() -> None:
    rig = Rig()
    rig.feed(PLAIN + b"hello")
    assert rig.client.sent == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Request-Id: id-1\r\n\r\nhello"
    assert rig.client.writes == 1
    assert rig.relay.done
    assert rig.reusable()


def test_a_whole_chunk_leaves_as_it_came() -> None:
    rig = Rig()
    rig.feed(CHUNKED, b"00")
    assert rig.body == b""
    rig.feed(b"5;ext=1\r\nhello\r\n")
    assert rig.body == b"5\r\nhello\r\n"
    rig.feed(b"A\r\n0123456789\r\n")
    assert rig.body.endswith(b"A\r\n0123456789\r\n")
    rig.feed(b"0\r\nTrailer: dropped\r\n\r\n")
    assert rig.body.endswith(b"789\r\n0\r\n\r\n")
    assert rig.reusable()


def test_half_a_chunk_is_not_held_back() -> None:
    rig = Rig()
    rig.feed(CHUNKED, b"a\r\n01234")
    assert rig.body == b"5\r\n01234\r\n"


def test_a_body_that_ends_with_the_connection_is_given_chunks() -> None:
    rig = Rig()
    rig.feed(TO_CLOSE + b"hel", b"lo")
    rig.relay.connection_ended(orderly=True, unread=False)
    assert rig.head.split(b"\r\n")[2] == b"Transfer-Encoding: chunked"
    assert rig.body == b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert rig.relay.error is None
    assert not rig.reusable()


@pytest.mark.parametrize("answer", [CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", TO_CLOSE + b"hello"])
def test_http_1_0_gets_no_chunks_but_the_connections_end(answer: bytes) -> None:
    rig = Rig(http10=True)
    rig.feed(answer)
    rig.relay.connection_ended(orderly=True, unread=False)
    assert b"Transfer-Encoding" not in rig.head
    assert b"Connection: close" in rig.head
    assert rig.body == b"hello"
    assert rig.relay.error is None


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_an_answer_without_a_body_ends_with_its_head(status: bytes) -> None:
    rig = Rig()
    rig.feed(b"HTTP/1.1 " + status + b"\r\n\r\n")
    assert rig.reusable()
    assert rig.body == b""


def test_the_answer_to_head_keeps_its_length_and_has_no_body() -> None:
    rig = Rig(method="HEAD")
    rig.feed(PLAIN)
    assert b"Content-Length: 5" in rig.head
    assert rig.reusable()


def test_interim_answers_are_read_over() -> None:
    rig = Rig()
    rig.feed(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 20", PLAIN[11:] + b"hello"
    )
    assert rig.head.startswith(b"HTTP/1.1 200 OK")
    assert rig.body == b"hello"


def test_endless_interim_answers_are_a_bad_head() -> None:
    rig = Rig()
    rig.feed(b"HTTP/1.1 102 Processing\r\n\r\n" * MAX_INTERIM_RESPONSES)
    assert not rig.relay.done
    rig.feed(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert rig.fault is UpstreamFault.BAD_HEAD


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN + b"helloHTTP/1.1 200 OK\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nsurplus",
    ],
)
def test_bytes_behind_the_answer_reach_nobody(answer: bytes) -> None:
    rig = Rig()
    rig.feed(answer)
    assert rig.relay.done
    assert rig.relay.error is None
    assert not rig.reusable()
    assert b"surplus" not in rig.client.sent
    assert rig.client.sent.count(b"HTTP/1.1") == 1


def test_bytes_that_follow_later_reach_nobody_either() -> None:
    rig = Rig()
    rig.feed(PLAIN + b"hello")
    assert rig.reusable()
    rig.feed(b"x")
    assert not rig.reusable()
    assert rig.body == b"hello"


def test_an_engine_that_closes_behind_its_answer_is_not_used_again() -> None:
    rig = Rig()
    rig.feed(PLAIN + b"hello")
    rig.relay.connection_ended(orderly=True, unread=False)
    assert rig.relay.error is None
    assert not rig.reusable()


def test_an_answer_that_began_before_the_request_was_sent_ends_both_connections() -> None:
    rig = Rig()
    rig.relay.request_sent = False
    rig.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello")
    assert b"Connection: close" in rig.head
    assert rig.body == b"hello"
    assert not rig.reusable()


WIRE = CHUNKED + b"".join(encode_chunk(b"data: %d\n\n" % n) for n in range(4)) + b"0\r\n\r\n"
BODY = b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
LENGTH_WIRE = b"HTTP/1.1 200 OK\r\nContent-Length: 36\r\n\r\n" + BODY


def unchunk(data: bytes) -> bytes:
    body = b""
    while True:
        match = re.match(rb"([0-9a-fA-F]+)\r\n", data)
        assert match, data
        size = int(match[1], 16)
        data = data[match.end() :]
        body += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]
        if not size:
            assert data == b""
            return body


@given(st.sets(st.integers(min_value=1, max_value=len(WIRE) - 1)))
def test_however_the_engines_bytes_are_cut_the_body_is_the_same(cuts: set[int]) -> None:
    for wire, read in ((WIRE, unchunk), (LENGTH_WIRE, bytes)):
        rig = Rig()
        rig.feed(*(wire[a:b] for a, b in pairwise(sorted({0, len(wire)} | {c for c in cuts if c < len(wire)}))))
        assert rig.reusable()
        assert read(rig.body) == BODY
        assert rig.exchange.sent_bytes == len(BODY)


def test_cut_at_each_single_position_and_byte_by_byte() -> None:
    for wire, read in ((WIRE, unchunk), (LENGTH_WIRE, bytes)):
        for cut in range(len(wire) + 1):
            rig = Rig()
            rig.feed(wire[:cut], wire[cut:])
            assert read(rig.body) == BODY, cut
        rig = Rig()
        rig.feed(*(wire[i : i + 1] for i in range(len(wire))))
        assert read(rig.body) == BODY


# ---- what is counted


def test_first_token_and_gaps_of_an_event_stream() -> None:
    rig = Rig()
    rig.feed(EVENTS)
    rig.loop.now += 0.3
    rig.feed(encode_chunk(b"data: 1\n\n"))
    rig.loop.now += 0.02
    rig.feed(encode_chunk(b"data: 2\n\n"))
    rig.loop.now += 0.02
    rig.feed(b"0\r\n\r\n")
    assert rig.exchange.first_byte == pytest.approx(1000.3)
    assert (rig.exchange.events, rig.exchange.sent_bytes) == (2, 18)
    assert rig.instruments.first_token.sum == pytest.approx(0.3)
    assert rig.instruments.gap.sum == pytest.approx(0.02)
    assert rig.inflight.last_work == pytest.approx(1000.32)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 17, 100])
@pytest.mark.parametrize("framing", [EVENTS, EVENTS.replace(b"Transfer-Encoding: chunked\r\n", b"")])
def test_an_event_is_counted_once_however_it_is_cut(framing: bytes, size: int) -> None:
    chunked = framing is EVENTS
    wire = encode_chunk(BODY[:9]) + encode_chunk(BODY[9:]) + b"0\r\n\r\n" if chunked else BODY + b": the end"
    rig = Rig()
    rig.feed(framing)
    for begin in range(0, len(wire), size):
        rig.feed(wire[begin : begin + size])
    assert rig.exchange.events == 4


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 3, 10, 17, 1000])
def test_events_count_whatever_their_lines_end_with(end: bytes, size: int) -> None:
    events = [event.replace(b"\n", end) for event in (b"data: 1\n\n", b"event: a\ndata: 2\n\n", b"data: [DONE]\n\n")]
    wire = b"".join(map(encode_chunk, events))
    rig = Rig()
    rig.feed(EVENTS, *(wire[begin : begin + size] for begin in range(0, len(wire), size)))
    assert rig.exchange.events == 3
    assert rig.exchange.sent_bytes == sum(map(len, events))
    rig.feed(*(encode_chunk(event) for event in events))
    assert rig.relay.said_all
    assert rig.exchange.events == 6
    assert unchunk(rig.body + b"0\r\n\r\n") == b"".join(events * 2)


@given(
    lines=st.lists(st.sampled_from([b"data: 1\n\n", b"event: a\ndata: 2\n\n", b"data: 3\n", b"\n"]), max_size=8),
    end=st.sampled_from([b"\n", b"\r\n"]),
    cuts=st.lists(st.integers(min_value=0, max_value=200)),
)
def test_however_events_are_cut_their_count_and_their_bytes_are_the_same(
    lines: list[bytes], end: bytes, cuts: list[int]
) -> None:
    chunks = [b"data: 0" + 2 * end, *(line.replace(b"\n", end) for line in lines)]
    wire = b"".join(map(encode_chunk, chunks)) + b"0\r\n\r\n"
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    rig = Rig()
    rig.feed(EVENTS, *(wire[a:b] for a, b in pairwise(edges)))
    body = b"".join(chunks)
    assert rig.exchange.events == body.count(2 * end)
    assert rig.exchange.sent_bytes == len(body)
    assert unchunk(rig.body) == body


def test_of_a_read_that_begins_and_ends_inside_chunks_the_rest_goes_as_it_came() -> None:
    rig = Rig()
    events = [b"data: %d\n\n" % number for number in range(10, 15)]
    wire = [encode_chunk(event) for event in events]
    # Written so by nobody else: whoever takes these apart and puts them together again writes 0a as a.
    odd = [b"A" + chunk[1:] for chunk in wire[1:4]]
    rig.feed(EVENTS, wire[0] + wire[0][:7], wire[0][7:] + b"".join(odd) + wire[4][:5], wire[4][5:])
    assert b"".join(odd) in rig.body
    assert rig.exchange.events == 6
    assert rig.exchange.sent_bytes == 6 * 10
    assert unchunk(rig.body + b"0\r\n\r\n") == events[0] + b"".join(events)


def test_what_stood_whole_before_a_break_in_the_same_read_is_passed_on() -> None:
    rig = Rig()
    event = encode_chunk(b"data: 1\n\n")
    rig.feed(EVENTS, event + event[:5], event[5:] + event + b"x\r\n")
    assert rig.fault is UpstreamFault.BAD_BODY
    assert rig.body == event + b"2\r\nda\r\n7\r\nta: 1\n\n\r\n" + event
    assert rig.exchange.events == 3


def test_what_looks_like_an_event_behind_the_end_reaches_nobody() -> None:
    rig = Rig()
    event = encode_chunk(b"data: 1\n\n")
    rig.feed(EVENTS, event + b"0\r\n\r\n" + event + b"5")
    assert rig.relay.error is None
    assert not rig.reusable()
    assert rig.body == event + b"0\r\n\r\n"


def test_other_answers_have_no_tokens() -> None:
    rig = Rig()
    rig.feed(PLAIN, b"he", b"llo")
    assert rig.exchange.first_byte == 1000.0
    assert (rig.exchange.events, rig.exchange.sent_bytes) == (0, 5)
    assert rig.instruments.first_token.buckets()[-1] == ("+Inf", 0)
    assert rig.instruments.gap.buckets()[-1] == ("+Inf", 0)


# ---- when it leaves


def test_events_wait_for_the_end_of_the_turn() -> None:
    rig = Rig()
    rig.feed(EVENTS, encode_chunk(b"data: 1\n\n"))
    writes = rig.client.writes
    rig.relay.data_received(encode_chunk(b"data: 2\n\n"))
    rig.relay.data_received(encode_chunk(b"data: 3\n\n"))
    assert rig.client.writes == writes
    rig.loop.end_turn()
    assert unchunk(rig.body + b"0\r\n\r\n") == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"


def test_the_end_of_a_stream_and_what_is_too_much_to_hold_go_at_once_and_in_order() -> None:
    rig = Rig()
    rig.feed(EVENTS)
    big = b"data: " + b"x" * 20_000 + b"\n\n"
    rig.relay.data_received(encode_chunk(b"data: 1\n\n"))
    rig.relay.data_received(encode_chunk(big))
    assert unchunk(rig.body + b"0\r\n\r\n") == b"data: 1\n\n" + big
    rig.relay.data_received(encode_chunk(b"data: 2\n\n"))
    rig.relay.data_received(b"0\r\n\r\n")
    assert rig.written_at_end == rig.client.sent
    assert unchunk(rig.body) == b"data: 1\n\n" + big + b"data: 2\n\n"


def test_an_event_that_waits_goes_before_the_answer_breaks() -> None:
    rig = Rig()
    rig.feed(EVENTS)
    rig.relay.data_received(encode_chunk(b"data: 1\n\n"))
    rig.relay.connection_ended(orderly=False, unread=False)
    assert rig.written_at_end.endswith(encode_chunk(b"data: 1\n\n"))


def test_what_waits_goes_before_the_end_that_the_connections_end_is() -> None:
    rig = Rig()
    rig.feed(EVENTS.replace(b"Transfer-Encoding: chunked\r\n", b""))
    rig.relay.data_received(b"data: 1\n\n")
    rig.relay.connection_ended(orderly=True, unread=False)
    assert rig.body == encode_chunk(b"data: 1\n\n") + b"0\r\n\r\n"


# ---- back-pressure


def test_a_full_client_stops_the_engine_until_there_is_room() -> None:
    rig = Rig()
    rig.feed(EVENTS)
    rig.relay.pause()
    assert rig.paused()
    assert not rig.reading()
    rig.relay.resume()
    assert rig.reading()
    assert not rig.paused()


def test_what_a_client_does_not_take_is_no_silence_of_the_engine() -> None:
    rig = Rig()
    rig.inflight.sent()
    rig.feed(EVENTS)
    rig.loop.now += 60
    seen = []
    for step in (
        *(rig.relay.pause, rig.relay.pause, rig.relay.resume),
        # However it ends, it is told once.
        *(rig.relay.pause, rig.relay.close, rig.relay.close),
    ):
        step()
        seen.append(rig.inflight.silent_since)
    assert seen == [None, None, 1060.0, None, 1060.0, 1060.0]


@pytest.mark.parametrize(
    ("method", "route", "status", "works"),
    [
        ("POST", "/v1/chat/completions", b"200 OK", True),
        ("POST", "/v1/chat/completions", b"400 Bad Request", False),
        ("POST", "/tokenize", b"200 OK", False),
        ("GET", "/v1/models", b"200 OK", False),
    ],
)
def test_what_shows_that_the_engine_works(method: str, route: str, status: bytes, *, works: bool) -> None:
    rig = Rig(method=method)
    rig.exchange.route = route
    rig.feed(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n")
    assert rig.inflight.last_work == 0.0  # a head may come before the request is scheduled
    rig.feed(b"{}")
    assert rig.inflight.last_work == (rig.loop.now if works else 0.0)


def test_a_connection_whose_answer_is_here_is_not_stopped() -> None:
    rig = Rig()
    rig.feed(PLAIN + b"hello")
    rig.relay.pause()
    assert rig.reading()


# ---- the end is told


def test_the_end_is_told_once_and_after_the_last_byte() -> None:
    rig = Rig()
    rig.feed(PLAIN, b"hel")
    assert rig.ends == 0
    rig.feed(b"lo")
    assert rig.written_at_end.endswith(b"hello")
    rig.feed(b"more")
    rig.relay.connection_ended(orderly=True, unread=False)
    assert rig.ends == 1


def test_so_is_a_failure() -> None:
    rig = Rig()
    rig.relay.fail(UpstreamFault.CUT, "detail")
    rig.relay.connection_ended(orderly=True, unread=False)
    assert rig.ends == 1


def test_a_closed_relay_tells_nobody() -> None:
    rig = Rig()
    rig.relay.close()
    rig.feed(PLAIN + b"hello")
    assert rig.ends == 0


# ---- faults


@pytest.mark.parametrize("garbage", [b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\n\n", b"HTTP/1.1 200 OK\r\na b\r\n\r\n"])
def test_no_head_is_a_bad_head(garbage: bytes) -> None:
    rig = Rig()
    rig.feed(garbage)
    assert rig.fault is UpstreamFault.BAD_HEAD
    assert rig.client.sent == b""
    assert rig.relay.responded


def test_bad_chunks_are_a_bad_body() -> None:
    rig = Rig()
    rig.feed(CHUNKED, b"zz\r\n")
    assert rig.fault is UpstreamFault.BAD_BODY
    assert not rig.reusable()


@pytest.mark.parametrize("begun", [b"", EVENTS])
def test_what_stood_whole_before_a_bad_chunk_is_not_held_back(begun: bytes) -> None:
    one, two = encode_chunk(b"data: 1\n\n"), encode_chunk(b"data: 2\n\n")
    rig = Rig()
    rig.feed(begun)
    rig.feed((b"" if begun else EVENTS) + one + two + b"zz\r\n")
    assert rig.fault is UpstreamFault.BAD_BODY
    assert rig.body == one + two
    rig.relay.end_broken(BROKEN)
    assert rig.body == one + two + encode_chunk(BROKEN.event)


def test_a_head_before_a_bad_chunk_is_not_held_back_either() -> None:
    rig = Rig()
    rig.feed(EVENTS + b"zz\r\n")
    rig.relay.end_broken(BROKEN)
    assert rig.body == encode_chunk(BROKEN.event)


def test_a_connection_that_ends_without_an_answer() -> None:
    rig = Rig()
    rig.relay.connection_ended(orderly=True, unread=True)
    assert rig.fault is UpstreamFault.CLOSED
    assert rig.relay.unread
    assert not rig.relay.responded


@pytest.mark.parametrize("begun", [PLAIN + b"hell", CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"0\r\n"])
def test_a_connection_that_ends_inside_an_answer(begun: bytes) -> None:
    rig = Rig()
    rig.feed(begun)
    rig.relay.connection_ended(orderly=True, unread=False)
    assert rig.fault is UpstreamFault.TRUNCATED
    assert not rig.client.sent.endswith(b"0\r\n\r\n")


def test_a_reset_is_no_orderly_end_of_a_body_that_ends_with_the_connection() -> None:
    rig = Rig()
    rig.feed(TO_CLOSE + b"hello")
    rig.relay.connection_ended(orderly=False, unread=False)
    assert rig.fault is UpstreamFault.TRUNCATED


def test_the_first_fault_stays() -> None:
    rig = Rig()
    rig.relay.fail(UpstreamFault.CUT, "first")
    rig.relay.fail(UpstreamFault.TRUNCATED, "second")
    rig.relay.refuse(ApiError(413, ErrorCode.REQUEST_TOO_LARGE, "third"))
    assert rig.fault is UpstreamFault.CUT


def test_a_request_that_cannot_go_on_ends_its_answer() -> None:
    rig = Rig()
    refusal = ApiError(413, ErrorCode.REQUEST_TOO_LARGE, "too large")
    rig.relay.refuse(refusal)
    assert rig.relay.done
    assert rig.relay.error is refusal


BROKEN = ApiError(502, ErrorCode.UPSTREAM_ERROR, "the engine failed")


@pytest.mark.parametrize("event", [b"data: one\n\n", b"data: one\r\n\r\n", b": ping\r\r"])
def test_a_broken_event_stream_says_so_and_never_ends_cleanly(event: bytes) -> None:
    rig = Rig()
    rig.feed(EVENTS, encode_chunk(event))
    rig.relay.end_broken(BROKEN)
    assert rig.body == encode_chunk(event) + encode_chunk(BROKEN.event)
    assert not rig.client.keep_alive
    assert not rig.client.was_reset


def test_an_event_stream_broken_before_its_first_event_says_so_too() -> None:
    rig = Rig()
    rig.feed(EVENTS)
    rig.relay.end_broken(BROKEN)
    assert rig.body == encode_chunk(BROKEN.event)


@pytest.mark.parametrize("half", [b'data: {"choices": [', b"data: one\n", b"data: one\r\n"])
def test_an_event_stream_broken_inside_an_event_lacks_its_last_chunk_and_nothing_is_added(half: bytes) -> None:
    rig = Rig()
    rig.feed(EVENTS, encode_chunk(half))
    rig.relay.end_broken(BROKEN)
    assert rig.body == encode_chunk(half)
    assert not rig.client.keep_alive
    assert not rig.client.was_reset


def test_a_broken_event_stream_of_http_1_0() -> None:
    rig = Rig(http10=True)
    rig.feed(EVENTS, encode_chunk(b"data: one\n\n"))
    rig.relay.end_broken(BROKEN)
    assert rig.body == b"data: one\n\n" + BROKEN.event


def test_an_event_stream_of_http_1_0_broken_inside_an_event_is_reset() -> None:
    rig = Rig(http10=True)
    rig.feed(EVENTS, encode_chunk(b"data: half"))
    rig.relay.end_broken(BROKEN)
    assert rig.client.was_reset


@pytest.mark.parametrize(
    "begun",
    [
        PLAIN + b"hell",
        CHUNKED + b"5\r\nhello\r\n",
        EVENTS.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: ",
    ],
)
def test_any_other_broken_answer_is_reset(begun: bytes) -> None:
    rig = Rig()
    rig.feed(begun)
    sent = rig.client.sent
    rig.relay.end_broken(BROKEN)
    assert rig.client.was_reset
    assert rig.client.sent == sent


# ---- deadlines


def test_no_deadline_unless_one_is_set() -> None:
    rig = Rig()
    rig.feed(EVENTS)
    assert rig.loop.armed == 0


def test_a_head_that_does_not_end_is_given_up() -> None:
    rig = Rig()
    rig.feed(b"HTTP/1.1 200 OK\r\n")
    rig.loop.advance(HEAD_SECONDS - 1)
    rig.feed(b"a: b\r\n")
    rig.loop.advance(2)
    assert rig.fault is UpstreamFault.FIRST_BYTE_TIMEOUT


def test_a_head_that_ends_in_time_disarms_it() -> None:
    rig = Rig()
    rig.feed(PLAIN[:-1])
    assert rig.loop.armed == 1
    rig.feed(PLAIN[-1:])
    assert rig.loop.armed == 0


def test_so_does_an_interim_one() -> None:
    rig = Rig()
    rig.feed(b"HTTP/1.1 103 Early")
    rig.feed(b" Hints\r\n\r\n")
    rig.loop.advance(HEAD_SECONDS + 1)
    assert not rig.relay.done
    rig.feed(b"HTTP/1.1 200")
    rig.loop.advance(HEAD_SECONDS - 1)
    assert not rig.relay.done
    rig.loop.advance(2)
    assert rig.fault is UpstreamFault.FIRST_BYTE_TIMEOUT


def test_the_first_byte_is_waited_for_from_the_requests_last() -> None:
    rig = Rig(first_byte_timeout_seconds=10.0)
    rig.loop.advance(8.0)
    rig.relay.progress = rig.loop.now
    rig.loop.advance(8.0)
    assert not rig.relay.done
    rig.loop.advance(3.0)
    assert rig.fault is UpstreamFault.FIRST_BYTE_TIMEOUT


def test_a_stream_that_falls_silent_is_ended() -> None:
    rig = Rig(idle_timeout_seconds=10.0)
    rig.feed(EVENTS)
    for _ in range(5):
        rig.loop.advance(8.0)
        rig.feed(encode_chunk(b"data: 1\n\n"))
    assert not rig.relay.done
    rig.loop.advance(10.5)
    assert rig.fault is UpstreamFault.IDLE_TIMEOUT


def test_a_client_that_does_not_read_is_not_the_engines_silence() -> None:
    rig = Rig(idle_timeout_seconds=10.0)
    rig.feed(EVENTS)
    rig.relay.pause()
    rig.loop.advance(25.0)
    assert not rig.relay.done
    rig.relay.resume()
    rig.loop.advance(9.0)
    assert not rig.relay.done
    rig.loop.advance(9.0)
    assert rig.fault is UpstreamFault.IDLE_TIMEOUT


def test_closing_leaves_no_timer() -> None:
    rig = Rig(first_byte_timeout_seconds=10.0)
    rig.relay.close()
    rig.relay.close()
    assert rig.loop.armed == 0


# ---- what the client hears


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (UpstreamFault.CONNECT_REFUSED, 503, "engine_unreachable"),
        (UpstreamFault.CONNECT_TIMEOUT, 503, "engine_unreachable"),
        (UpstreamFault.CONNECT_FAILED, 503, "engine_unreachable"),
        (UpstreamFault.CLOSED, 502, "upstream_error"),
        (UpstreamFault.BAD_HEAD, 502, "upstream_error"),
        (UpstreamFault.BAD_BODY, 502, "upstream_error"),
        (UpstreamFault.TRUNCATED, 502, "upstream_error"),
        (UpstreamFault.FIRST_BYTE_TIMEOUT, 504, "upstream_timeout"),
        (UpstreamFault.IDLE_TIMEOUT, 504, "upstream_timeout"),
        (UpstreamFault.CUT, 503, "draining"),
    ],
)
def test_each_fault_has_its_answer(fault: UpstreamFault, status: int, code: str) -> None:
    error = UpstreamError(fault, "detail").api_error
    assert (error.status, error.code) == (status, code)


def test_no_fault_was_forgotten() -> None:
    assert len(UpstreamFault) == 10
