"""Events are counted where they end, whatever their lines end with and however the network cut them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wings_proxy.proxy.event_stream import EventCounter, chunk_of_one_event, size_line
from wings_proxy.proxy.http1 import ChunkedDecoder, encode_chunk


def counted(*pieces: bytes) -> int:
    counter = EventCounter()
    return sum(map(counter.count, pieces))


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: 1\n\ndata: 2\n\n", 2),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", 2),
        (b"data: 1\n\ndata: 2\n", 1),
        (b"event: a\ndata: 1\n\n", 1),
        (b"event: a\r\ndata: 1\r\n\r\n", 1),
        (b": a comment\n\ndata: [DONE]\n\n", 2),
        (b"\n\ndata: 1\n\n", 2),
        (b"no line has ended", 0),
        (b"data: carriage returns alone\r\r", 0),
    ],
)
def test_events_end_with_a_blank_line(stream: bytes, events: int) -> None:
    assert counted(stream) == events


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_each_cut_gives_the_same_count(end: str) -> None:
    stream = f"event: a{end}data: 1{end}{end}data: 2{end}data: 3{end}{end}data: [DONE]{end}{end}".encode()
    for cut in range(len(stream) + 1):
        assert counted(stream[:cut], stream[cut:]) == 3, cut
    assert counted(*(stream[i : i + 1] for i in range(len(stream)))) == 3


@given(text=st.text("a\n", max_size=30), end=st.sampled_from(["\n", "\r\n"]), cuts=st.lists(st.integers(0, 60)))
def test_however_a_stream_is_cut_its_count_is_the_same(text: str, end: str, cuts: list[int]) -> None:
    stream = text.replace("\n", end).encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert counted(*(stream[a:b] for a, b in pairwise(edges))) == stream.count(2 * end.encode())


def test_it_is_known_whether_an_event_has_begun() -> None:
    counter = EventCounter()
    assert not counter.between_events
    assert counter.chunk_end == b""
    seen = []
    for piece in (b"da", b"ta: 1\r", b"\n", b"\r", b"\n", b"data: 2\r\n\r\n", b"d"):
        counter.count(piece)
        seen.append(counter.between_events)
    assert seen == [False, False, False, False, True, True, False]
    assert counter.chunk_end == b"\r\n\r\n\r\n"


# ---- one event in one chunk, as engines write them


def test_the_size_line_of_each_length_is_that_of_its_only_chunk() -> None:
    for size in (1, 9, 10, 15, 16, 100, 255, 256, 4095):
        chunk = encode_chunk(b"x" * size)
        assert size_line(len(chunk)) == b"%x\r\n" % size
    for length in (0, 1, 4, 5, 21, 262, 4103, 4104, 10_000_000):
        assert size_line(length) == b"\n"


@pytest.mark.parametrize(
    ("wire", "size"),
    [
        (b"9\r\ndata: 1\n\n\r\n", 9),
        (b"2\r\n\n\n\r\n", 2),
        (b"9\r\ndata: 1\n\n\r", 0),  # not all of it
        (b"8\r\ndata: 1\n\r\n", 0),  # half an event
        (b"12\r\ndata: 1\n\ndata: 2\n\n\r\n", 0),  # two events
        (b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n", 0),  # two chunks
        (b"12\r\nevent: a\ndata: 1\n\n\r\n", 0),  # two lines
        (b"09\r\ndata: 1\n\n\r\n", 0),  # not as everybody writes it
        (b"9;x\r\ndata: 1\n\n\r\n", 0),
        (b"0\r\n\r\n", 0),
        (b"", 0),
    ],
)
def test_one_event_in_one_chunk_is_known_at_a_glance(wire: bytes, size: int) -> None:
    assert chunk_of_one_event(wire) == size


@given(st.binary(max_size=40) | st.text("0123456789abcdef\r\n", max_size=30).map(str.encode))
def test_what_is_taken_for_one_event_is_one(random: bytes) -> None:
    for wire in (random, encode_chunk(random + b"\n\n"), encode_chunk(random or b"x")):
        if size := chunk_of_one_event(wire):
            decoder = ChunkedDecoder()
            [body] = decoder.feed(wire)
            assert decoder.between_chunks
            assert len(body) == size
            assert counted(b"data: \n\n", body) == 2
            assert body.endswith(b"\n\n")


@given(
    bodies=st.lists(st.text("a\n", min_size=1, max_size=6), min_size=1, max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
)
@example(bodies=["a\n\n\n"], end="\n")
@example(bodies=["a\n\n\n"], end="\r\n")
@example(bodies=["a\n\n", "a\na\n\n"], end="\r\n")
def test_events_counted_in_whole_chunks_are_those_counted_in_their_bodies(bodies: list[str], end: str) -> None:
    bodies = [body.replace("\n", end) for body in bodies]
    first = f"data: 0{end}{end}".encode()
    wire = b"".join(encode_chunk(body.encode()) for body in bodies)
    counter = EventCounter()
    counter.count(first)
    if ChunkedDecoder().whole_chunks(wire, counter.chunk_end):
        assert counter.count_chunks(wire) == counter.count("".join(bodies).encode())
        assert counter.between_events
