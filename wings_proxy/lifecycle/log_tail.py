"""Follow `engine.log` on the shared volume: late creation, rotation, truncation, and whatever stands in its place."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from wings_proxy.engines.base import LoadPhase
from wings_proxy.lifecycle.engine_log import LineSplitter, LoadProgress, LogCounts, is_echo
from wings_proxy.lifecycle.state import Progress

# The end of a long log is enough: what counts is what the engine does now.
_WINDOW_BYTES: Final = 256 * 1024
# A window of two-byte lines has 131 072: a third of a second in which no stream would move. Empty lines are shown to
# nobody, and there can be twice as many: to cut up the window takes 30 ms.
_LINES_AT_ONCE: Final = 200
_BYTES_AT_ONCE: Final = 8 * 1024
# A load's progress is looked at by people. Later nothing hangs on the log: an engine without metrics tells its speed
# there every ten seconds.
_LOADING_SECONDS: Final = 0.5
_OTHERWISE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class LogAdvanced:
    """The log of this epoch grew; `progress` is the newest load phase it showed."""

    epoch: int
    progress: Progress | None


class LineReader(Protocol):
    """Who is shown every line of a run."""

    def see(self, line: str, now: float) -> None:
        """Take a line, read at monotonic time *now*."""

    def forget(self) -> None:
        """Another run begins, or lines were lost."""


class LogFile:
    """One log file, read forward. Only a regular file is read: a FIFO would block, a link lead elsewhere.

    It is not held open between two reads: the script puts a new file in the place of a full one, and the space of one
    that is held is not free.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rotated = path.with_name(f"{path.name}.1")
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._history = True
        self.lost = 0
        """Bytes passed over by the last read, but for those that stood there before the first one."""
        self.cut = False
        """Whether something was passed over by the last read: what it returned then begins inside a line."""
        self.anew = False
        """Whether what the last read returned is the beginning of a file: the line before it has no more to come."""

    def restart(self) -> None:
        """Read what stands at the path from its first byte next."""
        self._identity = None

    async def read(self) -> bytes:
        """Return what was appended since the last call, at most the newest 256 KiB; empty if there is nothing."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        self.lost, self.cut, self.anew = 0, False, False
        try:
            there = os.lstat(self._path)
            identity = (there.st_dev, there.st_ino)
            if not stat.S_ISREG(there.st_mode):
                self._identity = None
                return b""
            rest = b""
            if identity != self._identity:
                rest = self._rest_of_the_rotated()
                self.anew = not rest
                self._identity, self._offset = identity, 0
            elif there.st_size < self._offset:
                self.anew, self._offset = True, 0  # truncated in place
            if there.st_size == self._offset:
                return rest
            new = self._new_part(self._path, identity)
            if rest and self._offset > len(new):
                # The beginning of the successor was passed over: what stood before it is not what comes before this.
                self.lost += len(rest) - 1
                return new
            return rest + new
        except OSError:
            # Not there yet, gone between two calls, or not readable by us: the log is a convenience, never a must.
            # What comes to stand there may be given the same number.
            self._identity = None
            return b""

    def _new_part(self, path: Path, identity: tuple[int, int]) -> bytes:
        # Non-blocking and no-follow: what stands there may have changed since it was looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            there = os.fstat(descriptor)
            if (there.st_dev, there.st_ino) != identity:
                return b""
            begin = max(self._offset, there.st_size - _WINDOW_BYTES)
            self.cut = self.cut or begin > self._offset
            if not self._history:
                self.lost += begin - self._offset
            self._history = False
            data = os.pread(descriptor, there.st_size - begin, begin)
        finally:
            os.close(descriptor)
        self._offset = begin + len(data)
        return data

    def _rest_of_the_rotated(self) -> bytes:
        """Return what the file we knew had got before it made room, if it stands beside its successor."""
        try:
            there = os.lstat(self._rotated)
            if self._identity != (there.st_dev, there.st_ino) or there.st_size <= self._offset:
                return b""
            return self._new_part(self._rotated, self._identity) + b"\n"
        except OSError:
            return b""


async def tail_engine_log(
    path: Path,
    phases: Sequence[LoadPhase],
    *,
    epoch: Callable[[], int],
    loading: Callable[[], bool],
    emit: Callable[[LogAdvanced], None],
    reader: LineReader,
    counts: LogCounts,
    clock: Callable[[], float],
    intervals: tuple[float, float] = (_LOADING_SECONDS, _OTHERWISE_SECONDS),
) -> None:
    """Show each line to *reader*, and report the load's progress, until cancelled.

    The script renames the old log before it announces a run, so what stands at the path in a new epoch is that run's
    log from its first byte. Two intervals, seconds: while a run loads, and else.
    """
    log = LogFile(path)
    seen_epoch = None
    splitter, progress = LineSplitter(counts), LoadProgress(phases)
    while True:
        now, is_loading = epoch(), loading()
        if is_loading and now != seen_epoch:
            log.restart()
            reader.forget()
            seen_epoch, splitter, progress = now, LineSplitter(counts), LoadProgress(phases)
        data = await log.read()
        if log.cut:
            # A line's rest may be a prompt's words, and look like a line of the engine.
            counts.dropped_bytes += log.lost
            splitter.skip()
            reader.forget()
        elif log.anew:
            # So may half a line of one file and half a line of the next.
            splitter.restart()
        if data:
            shown, read_at, lines, echoes = None, clock(), 0, 0
            for begin in range(0, len(data), _BYTES_AT_ONCE):
                for line in splitter.feed(data[begin : begin + _BYTES_AT_ONCE]):
                    lines += 1
                    reader.see(line, read_at)
                    if is_loading:
                        shown = progress.see(line) or shown
                        echoes += is_echo(line)
                    if lines % _LINES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                await asyncio.sleep(0)
            # A line that has not ended yet is news too: a progress bar, most often.
            if is_loading and (lines > echoes or not lines):
                emit(LogAdvanced(now, shown))
        await asyncio.sleep(intervals[not is_loading])
