"""Response heads and chunked bodies, as an engine may write them and as the network may cut them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.proxy.http1 import (
    MAX_CHUNK_LINE_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_TRAILER_BYTES,
    ChunkedDecoder,
    Field,
    Framing,
    ProtocolError,
    ResponseHead,
    connection_options,
    encode_chunk,
    find_head,
    parse_head,
)

UVICORN = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 18:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: 17\r\ncontent-type: application/json\r\n\r\n"
)


def parsed(block: bytes, *, head_request: bool = False) -> ResponseHead:
    return parse_head(block, head_request=head_request)


def with_fields(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    return parsed(b"\r\n".join([status, *lines]) + b"\r\n\r\n")


# ---- finding a head


def test_a_head_ends_behind_its_blank_line() -> None:
    assert find_head(UVICORN + b'{"object":"list"}') == len(UVICORN)


def test_every_beginning_of_a_head_is_waited_for() -> None:
    for cut in range(len(UVICORN)):
        assert find_head(UVICORN[:cut]) == 0, cut


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01", b"\r\n", b"HTTP/2 ", b"{", b"http/1.1"])
def test_another_protocol_is_found_out_at_its_first_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not start with HTTP/1"):
        find_head(data)


def test_bare_line_feeds_are_found_out_before_the_blank_line() -> None:
    with pytest.raises(ProtocolError, match="CR LF"):
        find_head(b"HTTP/1.1 200 OK\nserver: x\n\n")


def test_an_endless_head_is_refused() -> None:
    assert find_head(b"HTTP/1.1 200 " + b"x" * (MAX_HEAD_BYTES - 14)) == 0
    with pytest.raises(ProtocolError, match="longer than 65536"):
        find_head(b"HTTP/1.1 200 " + b"x" * (MAX_HEAD_BYTES - 13))


def test_a_head_that_ends_beyond_the_limit_is_refused_even_when_it_came_at_once() -> None:
    with pytest.raises(ProtocolError, match="longer than 65536"):
        find_head(b"HTTP/1.1 200 OK\r\na: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n")


# ---- reading it


def test_the_answer_of_uvicorn() -> None:
    assert parsed(UVICORN) == ResponseHead(
        status=200,
        reason=b"OK",
        fields=[
            Field(b"date", b"date", b"Sun, 22 Nov 2026 18:00:00 GMT", b"date: Sun, 22 Nov 2026 18:00:00 GMT\r\n"),
            Field(b"server", b"server", b"uvicorn", b"server: uvicorn\r\n"),
            Field(b"content-length", b"content-length", b"17", b"content-length: 17\r\n"),
            Field(b"content-type", b"content-type", b"application/json", b"content-type: application/json\r\n"),
        ],
        framing=Framing.LENGTH,
        length=17,
        keep_alive=True,
        connection=frozenset(),
        content_type=b"application/json",
        encoded=False,
    )


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, b"OK"),
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.1 404 Not Found\tat all", 404, b"Not Found\tat all"),
        (b"HTTP/1.0 599 \xe4", 599, b"\xe4"),
    ],
)
def test_status_lines(line: bytes, status: int, reason: bytes) -> None:
    head = with_fields(b"Content-Length: 0", status=line)
    assert (head.status, head.reason) == (status, reason)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 99 Low",
        b"HTTP/1.1 600 High",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 20x OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\x7fK",
    ],
)
def test_status_lines_that_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="bad status line"):
        with_fields(status=line)


@pytest.mark.parametrize(
    "line",
    [
        b"no colon",
        b": no name",
        b"name : space before the colon",
        b" folded",
        b"\tfolded",
        b"na\xefve: x",
        b"a: x\x00y",
        b"a: x\ry",
        b"a: x\ny",
        b"a: x\x01y",
        b"a: \x7f",
        b"",
    ],
)
def test_fields_that_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="bad header field"):
        with_fields(b"a: b", line)


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    head = with_fields(b"a:b", b"A: \t b c \t", b"d:", b"e: \xc3\xa9", b"Content-Length: 1")
    assert head.fields[:4] == [
        Field(b"a", b"a", b"b", b"a: b\r\n"),
        Field(b"a", b"A", b"b c", b"A: b c\r\n"),
        Field(b"d", b"d", b"", b"d: \r\n"),
        Field(b"e", b"e", b"\xc3\xa9", b"e: \xc3\xa9\r\n"),
    ]


def test_a_long_line_is_read_like_a_short_one() -> None:
    value = b"x" * 10_000
    assert with_fields(b"A: " + value, b"Content-Length: 1").fields[0] == Field(
        b"a", b"A", value, b"A: " + value + b"\r\n"
    )


def test_the_number_of_fields_is_bounded() -> None:
    assert len(with_fields(*[b"a: b"] * MAX_FIELDS).fields) == MAX_FIELDS
    with pytest.raises(ProtocolError, match="more than 256 fields"):
        with_fields(*[b"a: b"] * (MAX_FIELDS + 1))


@pytest.mark.parametrize(
    ("lines", "framing", "length"),
    [
        ([b"Content-Length: 5"], Framing.LENGTH, 5),
        ([b"content-length: 0"], Framing.NONE, 0),
        ([b"Transfer-Encoding: Chunked"], Framing.CHUNKED, 0),
        ([b"Server: x"], Framing.CLOSE, 0),
    ],
)
def test_where_a_body_ends(lines: list[bytes], framing: Framing, length: int) -> None:
    head = with_fields(*lines)
    assert (head.framing, head.length) == (framing, length)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: +5"],
        [b"Content-Length: -1"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: 1_0"],
        [b"Content-Length: "],
        [b"Content-Length: 1000000000000000000"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: "],
        [b"Transfer-Encoding: ", b"Content-Length: 5"],
    ],
)
def test_framings_two_readers_could_understand_differently_are_refused(lines: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match=r"bad (Content-Length|Transfer-Encoding)"):
        with_fields(*lines)


def test_chunks_in_http_1_0_are_refused() -> None:
    with pytest.raises(ProtocolError, match="bad Transfer-Encoding"):
        with_fields(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK")


@pytest.mark.parametrize("status", [b"100 Continue", b"103 Early Hints", b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body_whatever_they_announce(status: bytes) -> None:
    for line in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"a: b"):
        assert with_fields(line, status=b"HTTP/1.1 " + status).framing is Framing.NONE


def test_the_answer_to_head_has_no_body() -> None:
    head = parsed(UVICORN, head_request=True)
    assert head.framing is Framing.NONE
    assert head.keep_alive


def test_an_upgrade_nobody_asked_for_is_refused() -> None:
    with pytest.raises(ProtocolError, match="101"):
        with_fields(b"Upgrade: websocket", status=b"HTTP/1.1 101 Switching Protocols")


@pytest.mark.parametrize(
    ("status", "lines", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK", [b"Content-Length: 1"], True),
        (b"HTTP/1.1 200 OK", [b"Content-Length: 1", b"Connection: keep-alive"], True),
        (b"HTTP/1.1 200 OK", [b"Content-Length: 1", b"Connection: x", b"Connection: y, Close"], False),
        (b"HTTP/1.0 200 OK", [b"Content-Length: 1", b"Connection: keep-alive"], False),
        (b"HTTP/1.1 200 OK", [b"a: b"], False),
    ],
)
def test_whether_the_connection_goes_on(status: bytes, lines: list[bytes], keep_alive: bool) -> None:
    assert with_fields(*lines, status=status).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("lines", "event_stream"),
    [
        ([b"Content-Type: text/event-stream"], True),
        ([b"Content-Type: Text/Event-Stream ; charset=utf-8"], True),
        ([b"Content-Type: text/event-stream", b"Content-Encoding: gzip"], False),
        ([b"Content-Type: application/json"], False),
        ([], False),
    ],
)
def test_what_an_event_stream_is(lines: list[bytes], event_stream: bool) -> None:
    assert with_fields(*lines, b"Transfer-Encoding: chunked").is_event_stream is event_stream


def test_connection_options_are_lower_case_and_never_empty() -> None:
    assert connection_options(b"Keep-Alive,, \tX-Foo ,") == {b"keep-alive", b"x-foo"}


# ---- chunked bodies


def test_a_chunk_on_the_wire() -> None:
    assert encode_chunk(b"data: hello, world\n\n") == b"14\r\ndata: hello, world\n\n\r\n"


def decode(*pieces: bytes) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder()
    body = b"".join(part for piece in pieces for part in decoder.feed(piece))
    return body, decoder


def test_a_body_in_two_chunks() -> None:
    body, decoder = decode(b"4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n")
    assert body == b"Wikipedia"
    assert decoder.done
    assert not decoder.surplus


def test_extensions_and_trailers_are_read_over() -> None:
    body, decoder = decode(b'4;a=b;c="d e"\r\nWiki\r\n000;last\r\nExpires: never\r\nX: \r\n\r\n')
    assert body == b"Wiki"
    assert decoder.done


def test_what_follows_the_end_is_surplus() -> None:
    for pieces in ([b"0\r\n\r\nHTTP/1.1 200 OK"], [b"0\r\n\r\n", b"x"]):
        body, decoder = decode(*pieces)
        assert body == b""
        assert decoder.surplus


@pytest.mark.parametrize(
    "data",
    [
        b"4\nWiki\n",
        b"\r\n",
        b" 4\r\n",
        b"4 \r\n",
        b"0x4\r\n",
        b"-4\r\n",
        b"+4\r\n",
        b"4_0\r\n",
        b"g\r\n",
        b"1000000000000000\r\n",
        b"4;\x00\r\n",
        b"4\r\nWikiX\r\n",
        b"4\r\nWiki\rX",
        b"4\r\nWiki\nX",
        b"4\r\nWikiXX",
        b"0\r\nno colon\r\n",
        b"0\r\n folded: x\r\n",
        b"4;" + b"x" * MAX_CHUNK_LINE_BYTES,
        b"0\r\n" + b"a: b" * MAX_CHUNK_LINE_BYTES,
        b"0\r\n" + (b"a: " + b"b" * 97 + b"\r\n") * (MAX_TRAILER_BYTES // 100 + 1),
    ],
)
def test_chunks_that_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@pytest.mark.parametrize("data", [b"x", b"4 ", b"HTTP/1.1 500 Internal"])
def test_what_cannot_be_a_chunk_size_is_refused_before_its_line_ends(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="bad chunk size"):
        decode(data)


def test_whole_plain_chunks_are_known_as_such() -> None:
    decoder = ChunkedDecoder()
    assert decoder.whole_chunks(b"4\r\nWiki\r\n") == 4
    assert decoder.whole_chunks(b"4\r\nWiki\r\nA\r\n0123456789\r\n") == 14


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"4\r\nWik",
        b"4\r\nWiki",
        b"4\r\nWiki\r",
        b"4\r\nWikiXX",
        b"4\r\nWiki\r\n5",
        b"4\r\nWiki\r\n0\r\n\r\n",
        b"04\r\nWiki\r\n",
        b"4;x\r\nWiki\r\n",
        b"0\r\n\r\n",
        b"1\r\n\n\r\n",
        b"1\r\n\r\r\n",
    ],
)
def test_anything_else_is_not_passed_as_it_is(data: bytes) -> None:
    assert ChunkedDecoder().whole_chunks(data) == 0


def test_it_knows_how_much_is_left_of_a_chunk() -> None:
    """With its line end; not of that alone."""
    decoder = ChunkedDecoder()
    lefts = [decoder.left]
    for piece in (b"A", b"\r\n", b"01234", b"56789", b"\r\n", b"0\r\n"):
        decoder.feed(piece)
        lefts.append(decoder.left)
    assert lefts == [0, 0, 12, 7, 0, 0, 0]


def test_whole_chunks_may_have_to_end_in_a_certain_way() -> None:
    decoder = ChunkedDecoder()
    assert decoder.whole_chunks(b"9\r\ndata: 1\n\n\r\n3\r\nx\n\n\r\n", b"\n\n\r\n") == 12
    assert decoder.whole_chunks(b"9\r\ndata: 1\n\n\r\n3\r\nx\ny\r\n", b"\n\n\r\n") == 0
    assert decoder.whole_chunks(b"4\r\nx\n\n\n\r\n", b"\n\n\r\n") == 0
    # The line feed of its size line is no part of a chunk.
    assert decoder.whole_chunks(b"1\r\n\n\r\n", b"\n\n\r\n") == 0
    assert decoder.whole_chunks(b"1\r\nx\r\n", b"\n\n\r\n") == 0


def test_inside_a_chunk_or_a_line_nothing_is_a_whole_chunk() -> None:
    for beginning in (b"9\r\nWiki", b"9\r\nWikipedia", b"1"):
        decoder = ChunkedDecoder()
        decoder.feed(beginning)
        assert decoder.whole_chunks(b"4\r\nWiki\r\n") == 0


def test_a_body_cut_at_each_single_position_is_the_same_body() -> None:
    wire = b"4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nA: b\r\n\r\n"
    for cut in range(len(wire) + 1):
        body, decoder = decode(wire[:cut], wire[cut:])
        assert (body, decoder.done) == (b"Wikipedia", True), cut


def test_a_body_that_came_byte_by_byte_is_the_same_body() -> None:
    wire = b"4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nA: b\r\n\r\n"
    body, decoder = decode(*(wire[i : i + 1] for i in range(len(wire))))
    assert (body, decoder.done) == (b"Wikipedia", True)


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(min_value=0, max_value=400)),
)
def test_however_the_network_cuts_it_the_body_is_the_same(chunks: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(map(encode_chunk, chunks)) + b"0\r\n\r\n"
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    decoder = ChunkedDecoder()
    body = b""
    for start, end in pairwise(edges):
        piece = wire[start:end]
        whole = decoder.whole_chunks(piece)
        parts = decoder.feed(piece)
        assert whole in {0, sum(map(len, parts))}
        assert b"" not in parts
        body += b"".join(parts)
    assert body == b"".join(chunks)
    assert decoder.done
    assert not decoder.surplus


@given(st.binary(max_size=200))
def test_random_bytes_end_in_a_body_or_a_protocol_error(data: bytes) -> None:
    try:
        decode(data)
        if find_head(data):
            parsed(data)
    except ProtocolError:
        pass
