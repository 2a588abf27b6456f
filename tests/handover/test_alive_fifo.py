"""The FIFO the launch script holds open, seen from the sidecar; the other end is held by the tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wings_proxy.handover.alive_fifo import AliveFifo, FileIdentity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.alive"


@pytest.fixture
def script(path: Path) -> Iterator[int]:
    """The script's end."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def turn_into(path: Path, kind: str) -> None:
    """Put something else in the FIFO's place."""
    if path.exists():
        path.rename(path.with_name("moved"))
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "file":
            path.touch()
        case _:
            path.symlink_to("/dev/stdin")


def put_back(path: Path) -> None:
    path.with_name("moved").rename(path)


def identity(path: Path) -> FileIdentity:
    found = path.lstat()
    return found.st_dev, found.st_ino


async def test_held_open_rung_and_let_go(path: Path) -> None:
    os.mkfifo(path)
    script = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    fifo = AliveFifo(path, asyncio.Event())
    assert fifo.follow(identity(path)) is True
    os.write(script, b".")
    await fifo.rung(60)
    assert fifo.follow(identity(path)) is True
    os.close(script)
    await fifo.rung(60)
    assert fifo.follow(identity(path)) is False
    assert fifo.ended
    assert fifo.follow(identity(path)) is False
    fifo.close()


async def test_a_bell_rung_before_we_listen_is_heard(path: Path, script: int) -> None:
    fifo = AliveFifo(path, asyncio.Event())
    fifo.follow(identity(path))
    os.write(script, b"...")
    await fifo.rung(60)
    fifo.close()


async def test_silence_ends_with_the_time(path: Path, script: int) -> None:
    fifo = AliveFifo(path, asyncio.Event())
    await fifo.rung(0.001)
    fifo.follow(identity(path))
    await fifo.rung(0.001)
    fifo.close()


async def test_an_ended_fifo_keeps_nobody_awake(path: Path) -> None:
    os.mkfifo(path)
    fifo = AliveFifo(path, asyncio.Event())
    assert fifo.follow(identity(path)) is False
    ringing = asyncio.ensure_future(fifo.rung(60))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not ringing.done()
    ringing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ringing
    fifo.close()


async def test_a_new_fifo_at_the_path_is_changed_over_to(path: Path, script: int) -> None:
    fifo = AliveFifo(path, asyncio.Event())
    assert fifo.follow(identity(path)) is True
    turn_into(path, "fifo")
    assert fifo.follow(identity(path)) is False
    assert fifo.identity == identity(path)
    put_back(path)
    assert fifo.follow(identity(path)) is True
    fifo.close()


async def test_with_no_fifo_there_is_no_answer(path: Path, script: int) -> None:
    fifo = AliveFifo(path, asyncio.Event())
    assert fifo.follow((1, 2)) is True  # what lies there now counts
    assert fifo.follow(None) is None
    assert fifo.follow(identity(path)) is True
    assert fifo.follow(None) is None
    assert fifo.identity is None


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_what_is_no_fifo_when_it_is_opened_gives_no_answer(path: Path, kind: str) -> None:
    turn_into(path, kind)
    fifo = AliveFifo(path, asyncio.Event())
    assert fifo.follow((1, 2)) is None
    assert fifo.identity is None


async def test_a_fifo_that_never_runs_dry_is_not_read_for_ever(
    path: Path, script: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wings_proxy.handover.alive_fifo._READ_BYTES", 10)
    os.write(script, bytes(100))
    fifo = AliveFifo(path, asyncio.Event())
    assert fifo.follow(identity(path)) is True
    assert len(os.read(script, 1000)) == 100 - 4 * 10
    fifo.close()


async def test_closing_twice_is_fine(path: Path, script: int) -> None:
    fifo = AliveFifo(path, asyncio.Event())
    fifo.follow(identity(path))
    fifo.close()
    fifo.close()
    assert fifo.identity is None
