"""Following a log file through everything that can happen to it."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from wings_proxy.engines import ENGINES
from wings_proxy.engines.base import LoadPhase
from wings_proxy.lifecycle.engine_log import LineSplitter, LogCounts
from wings_proxy.lifecycle.log_tail import LogAdvanced, LogFile, tail_engine_log
from wings_proxy.lifecycle.state import Progress

# -- the file ----------------------------------------------------------------------------------------------------------


async def test_reads_what_is_appended_from_the_moment_the_file_exists(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    log = LogFile(path)
    assert await log.read() == b""
    path.write_bytes(b"one\n")
    assert await log.read() == b"one\n"
    assert await log.read() == b""
    with path.open("ab") as file:
        file.write(b"two\n")
    assert await log.read() == b"two\n"


async def test_goes_on_after_rotation_truncation_and_deletion(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"old\n")
    log = LogFile(path)
    assert await log.read() == b"old\n"
    with path.open("ab") as file:
        file.write(b"last words")
    path.rename(tmp_path / "engine.log.1")
    path.write_bytes(b"rotated\n")
    assert await log.read() == b"last words\nrotated\n"
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(b"cut\n")
    assert await log.read() == b"cut\n"
    path.unlink()
    assert await log.read() == b""
    path.write_bytes(b"again\n")
    assert await log.read() == b"again\n"
    assert log.lost == 0


async def test_a_successor_that_is_empty_does_not_hide_the_last_words(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"old\n")
    log = LogFile(path)
    await log.read()
    with path.open("ab") as file:
        file.write(b"last words")
    path.rename(tmp_path / "engine.log.1")
    path.touch()
    assert await log.read() == b"last words\n"


@pytest.mark.parametrize("grown", [0, 1])
async def test_what_stands_beside_it_and_was_never_it_is_not_read(tmp_path: Path, grown: int) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"old\n")
    log = LogFile(path)
    await log.read()
    (tmp_path / "engine.log.1").write_bytes(b"of the run before\n" * grown)
    path.unlink()
    # Keep the number of the old file from being given to the new one.
    (tmp_path / "other").touch()
    path.write_bytes(b"new\n")
    assert await log.read() == b"new\n"


async def test_a_restart_reads_the_same_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"line\n")
    log = LogFile(path)
    await log.read()
    log.restart()
    assert await log.read() == b"line\n"


async def test_never_reads_what_is_not_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    (tmp_path / "secret").write_bytes(b"secret\n")
    log = LogFile(path)
    os.mkfifo(path)
    assert await log.read() == b""
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    assert await log.read() == b""
    path.unlink()
    path.mkdir()
    assert await log.read() == b""
    path.rmdir()
    path.write_bytes(b"file\n")
    assert await log.read() == b"file\n"


async def test_what_takes_its_place_between_look_and_open_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"file\n")
    (tmp_path / "other").write_bytes(b"secret\n")
    opened = os.open

    def swapped(name: Path, flags: int) -> int:
        (tmp_path / "other").replace(path)
        return opened(name, flags)

    monkeypatch.setattr("wings_proxy.lifecycle.log_tail.os.open", swapped)
    assert await LogFile(path).read() == b""


async def test_a_pipe_that_takes_its_place_between_look_and_open_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"file\n")
    os.mkfifo(tmp_path / "other")
    opened = os.open

    def swapped(name: Path, flags: int) -> int:
        (tmp_path / "other").replace(path)
        assert flags & os.O_NONBLOCK, "waits for a writer for ever"
        return opened(name, flags)

    monkeypatch.setattr("wings_proxy.lifecycle.log_tail.os.open", swapped)
    assert await LogFile(path).read() == b""


async def test_of_a_flood_only_the_newest_part_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"x" * 3_000_000 + b"end")
    log = LogFile(path)
    data = await log.read()
    assert len(data) == 256 * 1024
    assert data.endswith(b"xend")
    # What stood there before we came was not missed by us.
    assert log.lost == 0
    assert await log.read() == b""
    with path.open("ab") as file:
        file.write(b"y" * 300_000)
    assert await log.read() == b"y" * 256 * 1024
    assert log.lost == 300_000 - 256 * 1024
    await log.read()
    assert log.lost == 0


async def test_a_flood_into_the_successor_leaves_nothing_of_what_it_replaced(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"old\n")
    log = LogFile(path)
    await log.read()
    with path.open("ab") as file:
        file.write(b"last words")
    path.rename(tmp_path / "engine.log.1")
    path.write_bytes(b"y" * 300_000)
    # Else the middle of a line would stand where a line begins.
    assert await log.read() == b"y" * 256 * 1024
    assert (log.cut, log.lost) == (True, len(b"last words") + 300_000 - 256 * 1024)


def test_nothing_is_held_open(tmp_path: Path) -> None:
    """The script puts a new file in the place of a full one; as long as we hold the old one, its space is not free."""
    path = tmp_path / "engine.log"
    path.write_bytes(b"line\n")
    assert asyncio.run(LogFile(path).read()) == b"line\n"
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert path not in links


# -- the task ----------------------------------------------------------------------------------------------------------


class Tail:
    """A tail of a log in its own directory, what it shows and reports, and the state it goes by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: asyncio.Queue[LogAdvanced] = asyncio.Queue()
        self.lines: list[str] = []
        self.forgotten = 0
        self.news = asyncio.Event()
        self.counts = LogCounts()
        self.epoch = 1
        self.loading = True
        self.passes = 0

    def see(self, line: str, now: float) -> None:
        assert now == 100.0
        self.lines.append(line)
        self.news.set()

    def forget(self) -> None:
        self.forgotten += 1

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    async def ended(self) -> list[str]:
        async with asyncio.timeout(40):
            while self.lines[-1] != "end":
                self.news.clear()
                await self.news.wait()
        return self.lines

    async def shown(self, number: int) -> list[str]:
        async with asyncio.timeout(40):
            while len(self.lines) < number:
                self.news.clear()
                await self.news.wait()
        return self.lines


@asynccontextmanager
async def tailing(directory: Path, phases: Sequence[LoadPhase] = ()) -> AsyncIterator[Tail]:
    tail = Tail(directory / "engine.log")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            tail_engine_log(
                tail.path,
                phases,
                epoch=lambda: tail.epoch,
                loading=lambda: tail.loading,
                emit=tail.reports.put_nowait,
                reader=tail,
                counts=tail.counts,
                clock=lambda: 100.0,
                intervals=(0.001, 0.001),
            )
        )
        yield tail
        task.cancel()


async def test_reports_phases_while_loading_and_starts_anew_with_each_run(tmp_path: Path) -> None:
    async with tailing(tmp_path, ENGINES["llamacpp"].load_phases) as tail:
        tail.write(b"0.00.023.465 I srv          init: loading model\n")
        assert await tail.reports.get() == LogAdvanced(1, Progress("weights"))
        tail.write(b"some other line\n")
        assert await tail.reports.get() == LogAdvanced(1, None)
        # The file is the same, the run another: it is read from its first byte.
        tail.epoch = 2
        assert await tail.reports.get() == LogAdvanced(2, Progress("weights"))
        assert tail.forgotten == 2


async def test_the_engines_note_of_our_probes_is_no_progress(tmp_path: Path) -> None:
    """SGLang answers 503 while it warms up, and notes each: a warm-up that hangs would load for ever."""
    probe = b'[2026-11-22 19:19:01] INFO:     127.0.0.1:50998 - "GET /health HTTP/1.1" 503 Service Unavailable\n'
    async with tailing(tmp_path, ENGINES["sglang"].load_phases) as tail:
        tail.write(probe)
        await tail.shown(1)
        tail.write(probe + probe)
        await tail.shown(3)
        assert tail.reports.empty()
        tail.write(probe + b"[2026-11-22 19:18:54] Load weight begin. avail mem=20.80 GB\n" + probe)
        assert await tail.reports.get() == LogAdvanced(1, Progress("weights"))
        await tail.shown(6)
        assert tail.reports.empty()
        tail.write(b"half a li")
        assert await tail.reports.get() == LogAdvanced(1, None)


async def test_after_the_load_lines_are_shown_and_nothing_is_reported(tmp_path: Path) -> None:
    async with tailing(tmp_path, ENGINES["llamacpp"].load_phases) as tail:
        tail.loading = False
        tail.write(b"0.00.023.465 I srv          init: loading model\nsecond\n")
        assert (await tail.shown(2))[1] == "second"
        # The end of a run is not the beginning of another.
        tail.epoch = 2
        tail.write(b"third\n")
        assert await tail.shown(3) == ["0.00.023.465 I srv          init: loading model", "second", "third"]
        assert tail.reports.empty()
        assert tail.counts == LogCounts(lines=3)


async def test_garbage_is_lines_too(tmp_path: Path) -> None:
    async with tailing(tmp_path) as tail:
        tail.write(bytes(range(256)) + b"\xff\xfe\n\x00\n\n\n\x1b[31mred\x1b[0m\n")
        lines = await tail.shown(4)
        assert lines[-2:] == ["\x00", "red"]


async def test_a_line_without_end_costs_no_memory_and_is_counted(tmp_path: Path) -> None:
    async with tailing(tmp_path) as tail:
        tail.write(b"begin\n")
        await tail.shown(1)
        total = 0
        for _ in range(20):
            tail.write(b"x" * 100_000)
            total += 100_000
            await asyncio.sleep(0.002)
        tail.write(b"\nend\n")
        lines = await tail.ended()
        assert all(len(line) <= 4096 for line in lines)
        assert tail.counts.dropped_bytes == total - sum(len(line) for line in lines[1:-1])


@pytest.mark.parametrize("how", ["rotated", "truncated", "deleted"])
async def test_half_a_line_of_one_file_and_the_first_of_the_next_are_no_line(tmp_path: Path, how: str) -> None:
    async with tailing(tmp_path) as tail:
        tail.loading = False
        tail.write(b"begin of a long line\nhalf")
        await tail.shown(1)
        if how == "truncated":
            os.truncate(tail.path, 0)
        elif how == "rotated":
            tail.path.rename(tmp_path / "engine.log.1")
        else:
            tail.path.unlink()
            (tmp_path / "other").touch()
        tail.write(b"first\nend\n")
        assert await tail.ended() == ["begin of a long line", "first", "end"]
        assert tail.counts == LogCounts(lines=3, dropped_bytes=4)


async def test_after_a_flood_the_cut_line_is_no_line(tmp_path: Path) -> None:
    async with tailing(tmp_path) as tail:
        tail.write(b"begin\nhalf")
        await tail.shown(1)
        tail.loading = False
        tail.write(b"0123456789\n" * 50_000 + b"end\n")
        await tail.ended()
        assert set(tail.lines) == {"begin", "0123456789", "end"}
        assert tail.forgotten == 2
        assert tail.counts.lines == len(tail.lines)
        assert tail.counts.dropped_bytes > 250_000


async def test_of_a_long_log_found_there_the_cut_line_is_no_line_either(tmp_path: Path) -> None:
    rest, whole = b"rest of a line that holds a prompt\n", b"x" * 1023 + b"\n"
    newest = rest + whole * 255 + b"y" * (1024 - len(rest) - 5) + b"\nend\n"
    assert len(newest) == 256 * 1024
    (tmp_path / "engine.log").write_bytes(b"before\nprompt: " + newest)
    async with tailing(tmp_path) as tail:
        tail.loading = False
        lines = await tail.shown(257)
        assert (lines[0], lines[-1]) == ("x" * 1023, "end")
        assert tail.counts == LogCounts(lines=257, dropped_bytes=len(rest) - 1)


async def test_a_flood_of_short_lines_lets_others_run(tmp_path: Path) -> None:
    seen: Counter[int] = Counter()

    class Recorder:
        def match(self, _line: str) -> None:
            seen[tail.passes] += 1

    phases = [LoadPhase("weights", cast("re.Pattern[str]", Recorder()))]
    (tmp_path / "engine.log").write_bytes(b"a\n" * 5000)
    async with tailing(tmp_path, phases) as tail:
        while tail.reports.empty():
            tail.passes += 1
            await asyncio.sleep(0)
    assert sum(seen.values()) == 5000
    assert max(seen.values()) <= 200


@pytest.mark.parametrize("data", [b"\n" * 262_144, b"x" * 262_144, b"\r\n" * 131_072])
async def test_a_flood_of_bytes_without_lines_lets_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    cut_up: list[tuple[int, int]] = []
    feed = LineSplitter.feed

    def counted(splitter: LineSplitter, piece: bytes) -> Iterator[str]:
        cut_up.append((tail.passes, len(piece)))
        return feed(splitter, piece)

    monkeypatch.setattr(LineSplitter, "feed", counted)
    (tmp_path / "engine.log").write_bytes(data)
    async with tailing(tmp_path) as tail:
        while sum(size for _, size in cut_up) < len(data):
            tail.passes += 1
            await asyncio.sleep(0)
    assert max(size for _, size in cut_up) <= 8 * 1024
    turns = [turn for turn, _ in cut_up]
    assert turns == sorted(set(turns)), "each piece in a turn of its own"
