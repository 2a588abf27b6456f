"""Heads seen before: what makes two of them one, what is kept of them, and that it comes to what the parser says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parsed import parsed
from wings_proxy.proxy.headers import CREDENTIALS, NOT_TO_ENGINE, read_fields
from wings_proxy.proxy.known_heads import (
    HOT_USES,
    MOST_HEAD_BYTES,
    MOST_HEADS,
    HeldRequest,
    KnownHead,
    KnownHeads,
    split_head,
)

OPENAI = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nConnection: keep-alive\r\nAuthorization: Bearer %b\r\n"
    b"X-Load: 100%%\r\nX-Request-Id: %b\r\ntraceparent: %b\r\nContent-Length: %b\r\n\r\n"
)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FIRST = OPENAI % (b"sk-1", b"one", TRACE, b"3")
SECOND = OPENAI % (b"sk-2", b"two", TRACE.replace(b"0af", b"1af"), b"1200")


def head_with(*lines: bytes, start: bytes = b"POST /v1/x HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: p", *lines, b"", b""))


def template(head: bytes) -> bytes:
    split = split_head(head)
    assert split is not None
    return split.template


def learn(heads: KnownHeads, head: bytes, *, times: int = 2) -> KnownHead | None:
    """Have *head* noted, and return what is known of it."""
    split = split_head(head)
    assert split is not None
    for _ in range(times):
        heads.note(split, head, parsed(head), "/v1/x")
    return heads.get(split.template)


# ---- taking heads apart


def test_the_values_of_the_open_fields_are_taken_out() -> None:
    split = split_head(FIRST + b"abc")
    assert split is not None
    assert split.template == (OPENAI % (b"", b"", b"", b"")).replace(b"Bearer ", b"")
    assert (split.values, split.end) == ([b"Bearer sk-1", b"one", TRACE, b"3"], len(FIRST))
    assert template(SECOND) == split.template


def test_no_two_fields_are_taken_for_one_another() -> None:
    one, other = head_with(b"X-Api-Key: a", b"X-Request-Id: b"), head_with(b"X-Request-Id: a", b"X-Api-Key: b")
    assert template(one) != template(other)
    assert template(head_with(b"X-Api-Key: a")) != template(head_with(b"x-api-key: a"))


@pytest.mark.parametrize("data", [b"", FIRST[:-1], head_with(b"A: " + b"x" * MOST_HEAD_BYTES)])
def test_heads_that_are_not_whole_or_long_are_left_alone(data: bytes) -> None:
    assert split_head(data) is None


def made_hot(known: KnownHead, head: bytes) -> None:
    split = split_head(head)
    assert split is not None
    known._uses = HOT_USES - 1
    assert known.fields(split.values) is not None


# ---- what is kept


def test_a_head_is_kept_when_it_comes_again() -> None:
    heads = KnownHeads(NOT_TO_ENGINE)
    assert learn(heads, FIRST, times=1) is None
    known = learn(heads, SECOND, times=1)
    assert known is not None
    assert (known.message.method, known.message.path, known.route) == ("POST", "/v1/chat/completions", "/v1/x")
    assert known is learn(heads, FIRST, times=1)


def test_neither_keys_nor_other_open_values_stay_in_memory() -> None:
    heads = KnownHeads(NOT_TO_ENGINE)
    secret = head_with(b"Authorization: Bearer SECRET", b"X-Api-Key: SECRET", b"Cookie: a=SECRET", b"Content-Length: 0")
    known = learn(heads, secret)
    assert known is not None
    made_hot(known, secret)
    assert known.read(secret) is not None
    assert "SECRET" not in repr((known, known.message, heads._heads))


@pytest.mark.parametrize(
    "head",
    [
        head_with(b"Transfer-Encoding: chunked"),
        head_with(b"Expect: 100-continue"),
        head_with(b"Connection: Upgrade", b"Upgrade: websocket"),
        head_with(b"Upgrade: h2c"),
        head_with(b"Connection: close"),
        head_with(b"Connection: keep-alive, X-A", b"X-A: 1"),
        head_with(b"TE: trailers"),
        head_with(b"Trailer: x"),
        head_with(b"Proxy-Authorization: Basic eA=="),
        head_with(b"Authorization: Basic eA=="),
        head_with(b"X-Request-Id: not clean"),
        head_with(b"Traceparent: 00-1"),
        head_with(b"Content-Length: 03"),
        head_with(b"Content-Length: 12345678"),
        head_with(b"X-Request-Id: 1", b"x-request-id: 2"),
        head_with(b"A:b"),
        head_with(b"A: b "),
        head_with(b"A:  b"),
        head_with(b"A: b\tc"),
        head_with(b"A: \xe4"),
        head_with(b"A: "),
        head_with(start=b"POST /v1/x?key=secret HTTP/1.1"),
        head_with(start=b"POST /v1/x HTTP/1.0"),
        head_with(start=b"POST http://p/v1/x HTTP/1.1"),
        head_with(start=b"OPTIONS * HTTP/1.1"),
    ],
)
def test_what_is_not_plain_is_for_the_parser(head: bytes) -> None:
    assert learn(KnownHeads(NOT_TO_ENGINE), head, times=3) is None


def test_nor_is_a_head_that_the_parser_read_otherwise() -> None:
    heads = KnownHeads(NOT_TO_ENGINE)
    split = split_head(FIRST)
    assert split is not None
    for _ in range(2):
        heads.note(split, FIRST, parsed(SECOND), "/v1/x")
    assert heads.get(split.template) is None


def test_the_head_not_met_for_longest_goes() -> None:
    heads = KnownHeads(NOT_TO_ENGINE)
    assert learn(heads, FIRST) is not None
    for number in range(MOST_HEADS + 1):
        learn(heads, head_with(b"A: %d" % number), times=1)
        assert number == MOST_HEADS or heads.get(template(FIRST)) is not None
    assert len(heads) == MOST_HEADS
    assert heads.get(template(head_with(b"A: 0"))) is None
    assert heads.get(template(FIRST)) is not None


# ---- what a known head comes to

VALUES = {
    b"Content-Length": st.integers(0, 9_999_999).map(lambda length: b"%d" % length),
    b"authorization": st.from_regex(rb"\A[bB]earer [!-~]{1,40}\Z"),
    b"X-Api-Key": st.from_regex(rb"\A[!-~]{1,40}\Z"),
    b"X-Request-ID": st.from_regex(rb"\A[0-9A-Za-z._~+/=:@-]{1,128}\Z"),
    b"traceparent": st.from_regex(rb"\A00-[1-9a-f]{32}-[1-9a-f]{16}-0[01]\Z"),
    b"Cookie": st.from_regex(rb"\A[!-~]([ -~]{0,20}[!-~])?\Z"),
    b"Accept": st.just(b"*/*"),
    b"X-Load%b": st.just(b"100%b"),
    b"Keep-Alive": st.just(b"timeout=5"),
}


@st.composite
def two_heads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two heads with the same fields, whose open values differ."""
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    first, second = (head_with(*(b"%b: %b" % (name, draw(VALUES[name])) for name in names)) for _ in range(2))
    return first, second


@given(two_heads(), st.booleans())
def test_the_fields_are_those_the_parser_finds(heads: tuple[bytes, bytes], guarded: bool) -> None:
    dropped = NOT_TO_ENGINE | CREDENTIALS if guarded else NOT_TO_ENGINE
    known = learn(KnownHeads(dropped), heads[0])
    split = split_head(heads[1])
    assert known is not None
    assert split is not None
    fields = known.fields(split.values)
    expected = read_fields(parsed(heads[1]).raw_headers, dropped=dropped)
    assert fields is not None
    assert b"".join(fields.lines) == b"".join(expected.lines)
    assert (fields.read, fields.keys) == (expected.read, expected.keys)
    made_hot(known, heads[0])
    assert known.read(heads[1] + b"body") == (heads[1], fields)


def test_a_head_met_often_is_read_by_its_pattern() -> None:
    known = learn(KnownHeads(NOT_TO_ENGINE), FIRST)
    assert known is not None
    for _ in range(HOT_USES):
        assert known.read(FIRST) is None
        assert known.fields([b"Bearer sk-1", b"one", TRACE, b"3"]) is not None
    assert known.read(FIRST) is not None


@given(st.data())
def test_a_pattern_takes_what_would_be_taken_without_it_and_nothing_else(data: st.DataObject) -> None:
    heads = KnownHeads(NOT_TO_ENGINE)
    known = learn(heads, FIRST)
    assert known is not None
    made_hot(known, FIRST)
    at = data.draw(st.integers(0, len(SECOND)))
    end = data.draw(st.integers(at, min(len(SECOND), at + 3)))
    odd = st.sampled_from(
        [b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b": ", b"0", b"Content-Length: 4\r\n", b"a" * 2048]
    )
    changed = SECOND[:at] + data.draw(odd | st.binary(max_size=3)) + SECOND[end:] + b"body"
    split = split_head(changed)
    if split is None or heads.get(split.template) is not known or (fields := known.fields(split.values)) is None:
        assert known.read(changed) is None
    else:
        assert known.read(changed) == (changed[: split.end], fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Content-Length", b""),
        (b"Content-Length", b"+3"),
        (b"Content-Length", b"3, 3"),
        (b"Content-Length", b"3 "),
        (b"Content-Length", b"0x3"),
        (b"Content-Length", b"1_0"),
        (b"Content-Length", b"03"),
        (b"Content-Length", b"\xb3"),
        (b"Content-Length", b"3\n"),
        (b"Content-Length", b"3\nTransfer-Encoding: chunked"),
        (b"X-Request-Id", b"a\nContent-Length: 9"),
        (b"X-Request-Id", b"a" * 129),
        (b"X-Request-Id", b"a\x00"),
        (b"Authorization", b"Bearer a\nb: c"),
        (b"Authorization", b"Bearer "),
        (b"Cookie", b"a\x7f"),
        (b"Cookie", b"a\n b"),
        (b"traceparent", TRACE + b"\n"),
    ],
)
def test_a_value_of_another_form_is_for_the_parser(name: bytes, value: bytes) -> None:
    usual = {b"Content-Length": b"3", b"X-Request-Id": b"1", b"Authorization": b"Bearer 1", b"Cookie": b"a=b"}
    heads = KnownHeads(NOT_TO_ENGINE)
    known = learn(heads, head_with(b"%b: %b" % (name, usual.get(name, TRACE))))
    split = split_head(head_with(b"%b: %b" % (name, value)))
    assert known is not None
    assert split is not None
    assert heads.get(split.template) is known
    assert known.fields(split.values) is None
    made_hot(known, head_with(b"%b: %b" % (name, usual.get(name, TRACE))))
    assert known.read(head_with(b"%b: %b" % (name, value))) is None


# ---- a body on its way


def test_a_request_is_held_until_its_body_is_whole() -> None:
    known = learn(KnownHeads(NOT_TO_ENGINE), FIRST)
    assert known is not None
    fields = known.fields([b"Bearer sk-1", b"one", TRACE, b"3"])
    assert fields is not None
    held = HeldRequest(FIRST, known, fields, 1.5)
    assert (held.length, held.missing) == (3, 3)
    assert held.add(b"a")
    assert held.add(b"bc")
    assert not held.missing
    assert (held.body.read_nowait(), held.data) == (b"abc", FIRST + b"abc")
    assert not held.add(b"d")
