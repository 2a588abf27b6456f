"""Following a log file through everything that can happen to it."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from pathlib import Path
from typing import cast

from wings_proxy.engines import ENGINES
from wings_proxy.engines.base import LoadPhase
from wings_proxy.lifecycle import Progress
from wings_proxy.log_tail import LogAdvanced, LogFile, tail_load_phases


async def test_reads_what_is_appended_from_the_moment_the_file_exists(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    async with LogFile(path) as log:
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
    async with LogFile(path) as log:
        assert await log.read() == b"old\n"
        path.rename(tmp_path / "engine.log.1")
        path.write_bytes(b"rotated\n")
        assert await log.read() == b"rotated\n"
        os.truncate(path, 0)
        with path.open("ab") as file:
            file.write(b"cut\n")
        assert await log.read() == b"cut\n"
        path.unlink()
        assert await log.read() == b""
        path.write_bytes(b"again\n")
        assert await log.read() == b"again\n"


async def test_never_reads_what_is_not_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    (tmp_path / "secret").write_bytes(b"secret\n")
    async with LogFile(path) as log:
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


async def test_of_a_flood_only_the_newest_part_is_read(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"x" * 3_000_000 + b"end")
    async with LogFile(path) as log:
        data = await log.read()
        assert len(data) == 256 * 1024
        assert data.endswith(b"xend")
        assert await log.read() == b""


async def test_reports_phases_while_loading_and_starts_anew_with_each_run(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    reports: asyncio.Queue[LogAdvanced] = asyncio.Queue()
    epoch, loading = 1, True
    async with asyncio.TaskGroup() as group:
        tail = group.create_task(
            tail_load_phases(
                path,
                ENGINES["llamacpp"].load_phases,
                epoch=lambda: epoch,
                loading=lambda: loading,
                emit=reports.put_nowait,
                interval=0.001,
            )
        )
        path.write_bytes(b"0.00.023.465 I srv          init: loading model\n")
        assert await reports.get() == LogAdvanced(1, Progress("weights"))
        with path.open("ab") as file:
            file.write(b"some other line\n")
        assert await reports.get() == LogAdvanced(1, None)
        # The file is the same, the run another: it is read from its first byte.
        epoch = 2
        assert await reports.get() == LogAdvanced(2, Progress("weights"))
        tail.cancel()


async def test_a_flood_of_short_lines_lets_others_run(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"a\n" * 5000)
    seen: Counter[int] = Counter()
    passes = 0

    class Recorder:
        def match(self, _line: str) -> None:
            seen[passes] += 1

    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tail = group.create_task(
            tail_load_phases(
                path,
                [LoadPhase("weights", cast("re.Pattern[str]", Recorder()))],
                epoch=lambda: 1,
                loading=lambda: True,
                emit=lambda _: done.set(),
            )
        )
        while not done.is_set():
            passes += 1
            await asyncio.sleep(0)
        tail.cancel()
    assert sum(seen.values()) == 5000
    assert max(seen.values()) <= 500


async def test_after_the_load_the_log_is_let_go(tmp_path: Path) -> None:
    """The script puts a new file in the place of a full one; as long as we hold the old one, its space is not free."""
    path = tmp_path / "engine.log"
    reports: asyncio.Queue[LogAdvanced] = asyncio.Queue()
    loading = True

    def held() -> bool:
        return any(link.is_symlink() and link.readlink() == path for link in Path("/proc/self/fd").iterdir())

    async with asyncio.TaskGroup() as group:
        tail = group.create_task(
            tail_load_phases(
                path, (), epoch=lambda: 1, loading=lambda: loading, emit=reports.put_nowait, interval=0.001
            )
        )
        path.write_bytes(b"some line\n")
        assert await reports.get() == LogAdvanced(1, None)
        assert held()
        loading = False
        async with asyncio.timeout(5):
            while held():  # noqa: ASYNC110 - a descriptor rings no bell
                await asyncio.sleep(0.001)
        tail.cancel()
