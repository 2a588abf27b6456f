"""A descriptor that blocks stops nobody."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from wings_proxy.telemetry.line_writer import LineWriter

PATIENCE = 30.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page, its two ends."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_everything_comes_in_its_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing)
    for number in range(100):
        writer.write(b"%d\n" % number, 1)
    assert writer.flush(PATIENCE)
    assert os.read(reading, 4096) == b"".join(b"%d\n" % number for number in range(100))
    assert writer.lost == 0
    writer.close(PATIENCE)


def test_a_pipe_nobody_reads_costs_what_does_not_fit_and_comes_back(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing, most_bytes=10_000)
    # The thread stands in this one's second half.
    writer.write(b"x" * 8192, 1)
    assert not writer.flush(0.01)
    writer.write(b"y" * 1000, 1)
    writer.write(b"z" * 1000, 7)
    assert writer.lost == 7
    # It cannot be ended, and nobody waits for it longer than said.
    writer.close(0.01)
    read = b""
    while len(read) < 9192:
        read += os.read(reading, 9192 - len(read))
    assert read == b"x" * 8192 + b"y" * 1000
    assert writer.flush(PATIENCE)
    writer.write(b"again", 1)
    writer.close(PATIENCE)
    assert os.read(reading, 100) == b"again"
    assert writer.lost == 7


def test_a_reader_that_is_gone_costs_lines(pipe: tuple[int, int]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    writer.write(b"a\nb\n", 2)
    writer.close(PATIENCE)
    assert writer.lost == 2
    os.close(writing)


def test_without_anything_to_write_there_is_no_thread(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    assert writer.flush(0.0)
    writer.close(0.0)
    assert writer._thread is None
