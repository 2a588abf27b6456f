"""Follow `engine.log` on the shared volume: late creation, rotation, truncation, and whatever stands in its place."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiofiles
import aiofiles.os
from aiofiles.threadpool.binary import AsyncBufferedReader

from wings_proxy.engine_log import LineSplitter, LoadProgress
from wings_proxy.engines.base import LoadPhase
from wings_proxy.lifecycle import Progress

# The end of a long log is enough: what counts is what the engine does now.
_WINDOW_BYTES: Final = 256 * 1024
# A window of two-byte lines has 131 072: a third of a second in which no stream would move.
_LINES_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class LogAdvanced:
    """The log of this epoch grew; `progress` is the newest load phase it showed."""

    epoch: int
    progress: Progress | None


class LogFile:
    """One log file, read forward. Only a regular file is read: a FIFO would block, a link lead elsewhere."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: AsyncBufferedReader | None = None
        self._identity: tuple[int, int] | None = None
        self._offset = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Forget the file; the next read begins with what then stands at the path."""
        if self._file is not None:
            await self._file.close()
        self._file = self._identity = None

    async def read(self) -> bytes:
        """Return what was appended since the last call, at most the newest 256 KiB; empty if there is nothing."""
        try:
            there = await aiofiles.os.stat(self._path, follow_symlinks=False)
            if not stat.S_ISREG(there.st_mode):
                await self.close()
                return b""
            if self._identity != (there.st_dev, there.st_ino):
                await self.close()
                self._file = await aiofiles.open(self._path, "rb", opener=_open_untrusted)
                self._identity, self._offset = (there.st_dev, there.st_ino), 0
            assert self._file is not None
            if there.st_size < self._offset:
                self._offset = 0  # truncated in place
            if there.st_size == self._offset:
                return b""
            self._offset = max(self._offset, there.st_size - _WINDOW_BYTES)
            await self._file.seek(self._offset)
            data = await self._file.read(there.st_size - self._offset)
        except OSError:
            # Not there yet, gone between two calls, or not readable by us: the log is a convenience, never a must.
            await self.close()
            return b""
        self._offset += len(data)
        return data


def _open_untrusted(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


async def tail_load_phases(
    path: Path,
    phases: Sequence[LoadPhase],
    *,
    epoch: Callable[[], int],
    loading: Callable[[], bool],
    emit: Callable[[LogAdvanced], None],
    interval: float = 0.5,
) -> None:
    """Report the load's progress until cancelled; outside a load the log is left alone.

    The script renames the old log before it announces a run, so what stands at the path in a new epoch is that run's
    log from its first byte.
    """
    async with LogFile(path) as log:
        seen_epoch = None
        splitter, progress = LineSplitter(), LoadProgress(phases)
        while True:
            if loading():
                if (now := epoch()) != seen_epoch:
                    await log.close()
                    seen_epoch, splitter, progress = now, LineSplitter(), LoadProgress(phases)
                data = await log.read()
                if data:
                    shown = None
                    for number, line in enumerate(splitter.feed(data), 1):
                        shown = progress.see(line) or shown
                        if number % _LINES_AT_ONCE == 0:
                            await asyncio.sleep(0)
                    emit(LogAdvanced(now, shown))
            else:
                # The script replaces a log that is full: held open, the old one would go on filling the volume.
                await log.close()
            await asyncio.sleep(interval)
