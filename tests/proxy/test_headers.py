"""Which header fields cross the proxy, and how."""

from __future__ import annotations

import pytest

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.headers import (
    CREDENTIALS,
    NOT_TO_ENGINE,
    AnswerHead,
    answer_head,
    error_response,
    offered_keys,
    read_fields,
    request_head,
    request_id,
    response_head,
)
from wings_proxy.proxy.http1 import Framing, ProtocolError

ID = b"id-1"


def to_engine(
    *fields: tuple[bytes, bytes], dropped: frozenset[bytes] = NOT_TO_ENGINE, authorization: bytes | None = None
) -> list[bytes]:
    read = read_fields(fields, dropped=dropped)
    head = request_head("POST", "/v1/x", read, host=b"127.0.0.1:8000", request_id=ID, authorization=authorization)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


Read = tuple[AnswerHead, bytes]


def from_engine(*lines: bytes, status: bytes = b"200 OK", head_request: bool = False) -> Read:
    block = b"\r\n".join([b"HTTP/1.1 " + status, *lines]) + b"\r\n\r\n"
    first, again = (answer_head(block, head_request=head_request) for _ in range(2))
    assert first == again
    return first


def to_client(read: Read, *, chunked: bool = False, connection: bytes | None = None) -> list[bytes]:
    data = response_head(*read, request_id=ID, chunked=chunked, connection=connection)
    assert data.endswith(b"\r\n\r\n")
    return data[:-4].split(b"\r\n")


# ---- request ids


@pytest.mark.parametrize(
    "given", [b"a", b"0f8fad5b-d9cb-469f-a165-70867728950e", b"Root=1-67:a+b/c~d_e.f@g", b"x" * 128]
)
def test_a_short_and_clean_request_id_is_kept(given: bytes) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, b"", b"a b", b"a\r\nb", b"\xc3\xa9", b"a;b", b'"a"', b"x" * 129])
def test_any_other_is_replaced(given: bytes | None) -> None:
    made = request_id(given)
    assert len(made) == 32
    assert int(made, 16) >= 0
    assert made != request_id(given)


# ---- to the engine


def test_fields_keep_order_spelling_and_repetitions() -> None:
    assert to_engine((b"Accept", b"*/*"), (b"x-b", b"1"), (b"X-B", b"2"), (b"Cookie", b"c\xe9")) == [
        b"POST /v1/x HTTP/1.1",
        b"Host: 127.0.0.1:8000",
        b"Accept: */*",
        b"x-b: 1",
        b"X-B: 2",
        b"Cookie: c\xe9",
        b"X-Request-Id: id-1",
    ]


def test_the_target_is_sent_as_it_came() -> None:
    nothing = read_fields([], dropped=NOT_TO_ENGINE)
    head = request_head("GET", "/v1//a%2Fb/../%7e?q=%25&x=+;\udcff", nothing, host=b"h", request_id=ID)
    assert head.startswith(b"GET /v1//a%2Fb/../%7e?q=%25&x=+;\xff HTTP/1.1\r\nHost: h\r\n")
    assert nothing.trace_id == ""


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Connection",
        b"Proxy-Authorization",
        b"TE",
        b"Trailer",
        b"Upgrade",
        b"Host",
        b"Expect",
        b"X-Request-Id",
    ],
)
def test_what_speaks_about_one_connection_ends_here(name: bytes) -> None:
    assert to_engine((name, b"x")) == to_engine()


def test_fields_named_in_connection_end_here() -> None:
    kept = to_engine((b"X-Hop", b"1"), (b"X-End", b"2"), (b"Connection", b"close, x-hop"))
    assert b"X-End: 2" in kept
    assert b"X-Hop: 1" not in kept


def test_a_client_cannot_name_away_what_frames_the_message_or_what_we_add() -> None:
    kept = to_engine(
        (b"Content-Length", b"3"),
        (b"Content-Type", b"a/b"),
        (b"Connection", b"content-length, content-type, x-request-id"),
        (b"Connection", b"host, authorization"),
        authorization=b"Bearer engine",
    )
    assert kept[1:] == [
        b"Host: 127.0.0.1:8000",
        b"Content-Length: 3",
        b"Content-Type: a/b",
        b"Authorization: Bearer engine",
        b"X-Request-Id: id-1",
    ]


def test_the_clients_credential_is_replaced_by_the_engines() -> None:
    kept = to_engine(
        (b"authorization", b"Bearer client"),
        (b"X-API-Key", b"client"),
        dropped=NOT_TO_ENGINE | CREDENTIALS,
        authorization=b"Bearer engine",
    )
    assert kept == to_engine(authorization=b"Bearer engine")


def test_a_chunked_body_is_announced() -> None:
    assert to_engine((b"transfer-encoding", b"chunked")).count(b"Transfer-Encoding: chunked") == 1


@pytest.mark.parametrize("connection", [b"keep-alive", b"close", b"Keep-Alive", b"KEEP-ALIVE"])
def test_an_ordinary_connection_field_takes_nothing_else_along(connection: bytes) -> None:
    assert to_engine((b"Connection", connection), (b"Close", b"1")) in (to_engine((b"Close", b"1")), to_engine())


def test_the_values_we_act_on_are_read_on_the_way() -> None:
    fields = read_fields(
        [(b"CONTENT-LENGTH", b"5"), (b"expect", b"100-continue"), (b"X-Request-Id", b"a"), (b"x-request-id", b"b")],
        dropped=NOT_TO_ENGINE,
    )
    assert fields.read == {b"content-length": b"5", b"expect": b"100-continue", b"x-request-id": b"a,b"}
    assert not fields.chunked


# ---- to the client


def test_the_engines_head_passes() -> None:
    head = from_engine(
        b"server: uvicorn", b"Set-Cookie: a", b"Set-Cookie: b", b"content-length: 2", status=b"418 T\xe9"
    )
    assert to_client(head) == [
        b"HTTP/1.1 418 T\xe9",
        b"server: uvicorn",
        b"Set-Cookie: a",
        b"Set-Cookie: b",
        b"content-length: 2",
        b"X-Request-Id: id-1",
    ]


def test_the_engines_connection_is_not_the_clients() -> None:
    head = from_engine(
        b"Connection: close, X-Hop, Content-Length",
        b"Keep-Alive: timeout=5",
        b"X-Hop: 1",
        b"X-Request-Id: engine",
        b"X-Wings-Origin: proxy",
        b"Trailer: x",
        b"Content-Length: 2",
    )
    assert to_client(head, connection=b"keep-alive") == [
        b"HTTP/1.1 200 OK",
        b"Content-Length: 2",
        b"Connection: keep-alive",
        b"X-Request-Id: id-1",
    ]


@pytest.mark.parametrize("name", [b"content-length", b"Content-Length", b"Content-length", b"CONTENT-LENGTH"])
@pytest.mark.parametrize("length", [b"1", b"0", b"12", b"007", b"123456789012345678"])
@pytest.mark.parametrize("colon", [b": ", b":", b":\t "])
def test_the_length_is_the_engines(name: bytes, length: bytes, colon: bytes) -> None:
    read = from_engine(b"a: 1", name + colon + length, b"x-content-length: 1", b"b: content-length: 1")
    assert to_client(read)[1:-1] == [
        b"a: 1",
        name + b": " + length,
        b"x-content-length: 1",
        b"b: content-length: 1",
    ]
    answer, digits = read
    assert int(digits or b"%d" % answer.head.length) == int(length)


def test_another_length_finds_the_same_head_again() -> None:
    one, two = (from_engine(b"server: x", b"content-length: " + length, b"a: b") for length in (b"7", b"4711"))
    assert one[0] is two[0]
    assert to_client(two)[1:-1] == [b"server: x", b"content-length: 4711", b"a: b"]


def test_the_answer_to_head_keeps_its_length() -> None:
    read = from_engine(b"content-length: 99", head_request=True)
    assert read[0].head.framing is Framing.NONE
    assert to_client(read)[1] == b"content-length: 99"


@pytest.mark.parametrize(
    "lines",
    [
        [b"content-length: 1", b"content-length: 1"],
        [b"content-length: 1", b"Content-Length: 1"],
        [b"content-length: 1", b"CONTENT-LENGTH:1"],
        [b"content-length: 1, 1"],
        [b"content-length: +1"],
        [b"content-length: "],
        [b"content-length: 1", b"transfer-encoding: chunked"],
        [b"content-length: 1234567890123456789"],
    ],
)
def test_a_length_that_could_be_read_in_two_ways_is_refused(lines: list[bytes]) -> None:
    for _ in range(2):
        with pytest.raises(ProtocolError):
            from_engine(*lines)


def test_a_long_head_is_not_remembered() -> None:
    read = from_engine(b"a: " + b"x" * 2000, b"content-length: 5")
    assert read[1] == b""
    assert to_client(read)[2] == b"content-length: 5"


def test_chunks_are_announced_once() -> None:
    head = from_engine(b"Transfer-Encoding: chunked")
    assert to_client(head, chunked=True)[1:] == [b"Transfer-Encoding: chunked", b"X-Request-Id: id-1"]


def test_a_204_announces_no_length() -> None:
    head = from_engine(b"Content-Length: 0", status=b"204 No Content")
    assert to_client(head) == [b"HTTP/1.1 204 No Content", b"X-Request-Id: id-1"]


def test_buffering_proxies_are_kept_off_an_event_stream() -> None:
    head = from_engine(b"Content-Type: text/event-stream", b"Transfer-Encoding: chunked")
    assert to_client(head)[2:4] == [b"Cache-Control: no-cache", b"X-Accel-Buffering: no"]


def test_unless_the_engine_spoke_about_them() -> None:
    head = from_engine(
        b"Content-Type: text/event-stream",
        b"cache-control: private",
        b"x-accel-buffering: yes",
        b"Transfer-Encoding: chunked",
    )
    assert to_client(head)[1:] == [
        b"Content-Type: text/event-stream",
        b"cache-control: private",
        b"x-accel-buffering: yes",
        b"X-Request-Id: id-1",
    ]


# ---- our own errors

REFUSAL = ApiError(429, ErrorCode.OVERLOADED, "too many", retry_after=3)
BODY = b'{"error": {"message": "too many", "type": "rate_limit_error", "param": null, "code": "overloaded"}}'


def test_an_error_of_our_own() -> None:
    assert error_response(REFUSAL, request_id=ID, head_request=False, connection=None) == (
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nX-Wings-Origin: proxy\r\n"
        b"Retry-After: 3\r\nContent-Length: %d\r\nX-Request-Id: id-1\r\n\r\n%b" % (len(BODY), BODY)
    )


def test_an_error_for_head_on_a_connection_that_ends() -> None:
    answer = error_response(REFUSAL, request_id=ID, head_request=True, connection=b"close")
    assert answer.endswith(b"Connection: close\r\nContent-Length: %d\r\nX-Request-Id: id-1\r\n\r\n" % len(BODY))


@pytest.mark.parametrize(
    ("parent", "trace"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        (b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "0af7651916cd43dd8448eb211c80319c"),
        (b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ""),
        (b"00-00000000000000000000000000000000-b7ad6b7169203331-01", ""),
        (b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", ""),
        (b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", ""),
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", ""),
        (b'00-"af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', ""),
        (b"", ""),
    ],
)
def test_the_trace_a_request_belongs_to(parent: bytes, trace: str) -> None:
    assert read_fields([(b"Traceparent", parent)], dropped=NOT_TO_ENGINE).trace_id == trace


def test_a_traceparent_goes_on_untouched_valid_or_not() -> None:
    fields = read_fields([(b"Traceparent", b"nonsense"), (b"tracestate", b"a=b")], dropped=NOT_TO_ENGINE)
    assert fields.lines == [b"Traceparent: nonsense\r\n", b"tracestate: a=b\r\n"]


def test_what_a_request_offers_as_keys() -> None:
    fields = [(b"Authorization", b"Bearer  one "), (b"authorization", b"Basic dHdv"), (b"X-Api-Key", b"three")]
    assert offered_keys(fields) == [b"one", b"three"]
