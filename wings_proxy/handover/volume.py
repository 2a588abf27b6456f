"""The shared volume, seen from the sidecar: publish the script, hold a run, follow what the script says.

The other writer is the engine's container, which nobody vouches for: whatever is read here is checked, nothing is ever
executed. System calls that may wait for a disk run in a thread, never on the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from wings_proxy.handover.alive_fifo import AliveFifo, FileIdentity
from wings_proxy.handover.atomic_file import opened_directory, opened_regular, read_small, remove_leftovers, replace
from wings_proxy.handover.engine_status import MAX_STATUS_BYTES, EngineStatus, Phase, parse_status
from wings_proxy.handover.launch import Script
from wings_proxy.handover.sidecar_record import MAX_RECORD_BYTES, SidecarRecord, parse_record
from wings_proxy.handover.volume_lock import VolumeLock

SCRIPT_NAME: Final = "start_command.sh"
STATUS_NAME: Final = "engine.status"
ALIVE_NAME: Final = "engine.alive"
LOG_NAME: Final = "engine.log"
OLD_LOG_NAME: Final = "engine.log.1"
HOLD_NAME: Final = "hold"
RECORD_NAME: Final = "sidecar.record"

# Readable and runnable by whatever user the engine's image has.
_SCRIPT_MODE: Final = 0o755
_HOLD_MODE: Final = 0o644
# Nobody else's business.
_RECORD_MODE: Final = 0o600
# A run id and its line end, with room to spare.
_MAX_HOLD_BYTES: Final = 128
# Tracebacks of eight workers and what follows from them.
_LAST_WORDS_BYTES: Final = 64 * 1024

# Whatever the other side does with the FIFO, the volume is not looked at more often than this. It is also the most
# that a ring shortly before can delay the news of the script's end.
_SHORTEST_PAUSE_SECONDS: Final = 0.05
_LOOKS: Final = 4


class VolumeReason(StrEnum):
    """Why the volume could not be written: a closed set, fit for a state's reason and a metric's label."""

    FULL = "volume_full"
    READ_ONLY = "volume_read_only"
    DENIED = "volume_denied"
    MISSING = "volume_missing"
    NOT_A_DIRECTORY = "volume_not_a_directory"
    OCCUPIED = "volume_occupied"
    IN_USE = "volume_in_use"
    ERROR = "volume_error"


_REASONS: Final = {
    errno.ENOSPC: VolumeReason.FULL,
    errno.EDQUOT: VolumeReason.FULL,
    errno.EROFS: VolumeReason.READ_ONLY,
    errno.EACCES: VolumeReason.DENIED,
    errno.EPERM: VolumeReason.DENIED,
    errno.ENOENT: VolumeReason.MISSING,
    errno.ENOTDIR: VolumeReason.NOT_A_DIRECTORY,
    errno.EISDIR: VolumeReason.OCCUPIED,
}


class VolumeError(Exception):
    """The volume cannot be written. ``reason`` is for machines, ``detail`` names path and cause for a human."""

    def __init__(self, reason: VolumeReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Final = reason
        self.detail: Final = detail


class Volume:
    """The directory both containers mount; ``path`` may appear, vanish or change at any time."""

    def __init__(self, path: Path, *, lock: VolumeLock | None = None) -> None:
        """Write to it only while nobody else does, if there is a ``lock``; whoever gave it releases it."""
        self.path: Final = path
        self._lock: Final = lock

    async def publish(self, script: Script) -> bool:
        """Put the launch script in place; ``False`` if the same bytes already lay there (they are adopted).

        A link, a FIFO or a socket in its place is replaced, what a link points to is not touched; a directory is not
        ours to remove. Raises :class:`VolumeError`; what lay there before is then whole.
        """
        return await asyncio.to_thread(self._publish, script.text)

    async def read_status(self) -> EngineStatus | None:
        """What the script last said; ``None`` if nothing readable and right is there. Never raises."""
        return await asyncio.to_thread(self._load_status)

    async def take_hold(self, run: str) -> None:
        """Tell the script of ``run`` not to end the engine yet. Raises :class:`VolumeError`."""
        await asyncio.to_thread(self._take_hold, f"{run}\n".encode())

    async def read_hold(self) -> str | None:
        """The run a hold names, ``None`` if none that can be read lies there. Never raises."""
        return await asyncio.to_thread(self._load_hold)

    async def save_record(self, record: SidecarRecord) -> None:
        """Keep what our next process should know. Raises :class:`VolumeError`."""
        await asyncio.to_thread(self._save_record, record.to_bytes())

    async def read_record(self) -> SidecarRecord | None:
        """What an earlier process of ours kept; ``None`` if nothing readable and right is there. Never raises."""
        return await asyncio.to_thread(self._load_record)

    async def last_words(self, run: str) -> bytes:
        """The end of the log of ``run``, the newest that ended: whole lines, at most 64 KiB. Never raises.

        Also when the next run has begun meanwhile and put that log aside.
        """
        return await asyncio.to_thread(self._last_words, run)

    async def release_hold(self) -> None:
        """Let every run go; no hold there is fine. Raises :class:`VolumeError`."""
        await asyncio.to_thread(self._release_hold)

    def _publish(self, text: bytes) -> bool:
        with _translated(self.path / SCRIPT_NAME), opened_directory(self.path) as directory:
            self._take_lock(directory)
            remove_leftovers(directory, (SCRIPT_NAME, HOLD_NAME, RECORD_NAME))
            if _lies_there(directory, text):
                return False
            replace(directory, SCRIPT_NAME, text, _SCRIPT_MODE, durable=True)
            return True

    def _take_hold(self, content: bytes) -> None:
        with _translated(self.path / HOLD_NAME), opened_directory(self.path) as directory:
            self._take_lock(directory)
            # Not durable: no run survives a power failure, and the first request of this one is waiting for us.
            replace(directory, HOLD_NAME, content, _HOLD_MODE, durable=False)

    def _save_record(self, content: bytes) -> None:
        with _translated(self.path / RECORD_NAME), opened_directory(self.path) as directory:
            self._take_lock(directory)
            # Not durable: no run survives a power failure.
            replace(directory, RECORD_NAME, content, _RECORD_MODE, durable=False)

    def _load_record(self) -> SidecarRecord | None:
        try:
            with opened_directory(self.path) as directory:
                return parse_record(read_small(directory, RECORD_NAME, MAX_RECORD_BYTES))
        except OSError:
            return None

    def _take_lock(self, directory: int) -> None:
        if self._lock is not None and not self._lock.take(directory):
            detail = f"{self.path}: another sidecar writes to it; each pod needs a volume of its own"
            raise VolumeError(VolumeReason.IN_USE, detail)

    def _release_hold(self) -> None:
        hold = self.path / HOLD_NAME
        try:
            with opened_directory(self.path) as directory:
                if self._lock is not None and not self._lock.take(directory):
                    return  # it protects another's streams
            hold.unlink()
        except OSError:
            # Also when the volume is gone, or read-only with nothing there: what matters is that no hold is left.
            with _translated(hold), suppress(FileNotFoundError, NotADirectoryError):
                hold.lstat()
                raise

    def _load_hold(self) -> str | None:
        try:
            with opened_directory(self.path) as directory:
                content = read_small(directory, HOLD_NAME, _MAX_HOLD_BYTES)
        except OSError:
            return None
        return content.decode().strip() or None if content.isascii() and len(content) <= _MAX_HOLD_BYTES else None

    def _last_words(self, run: str) -> bytes:
        try:
            with opened_directory(self.path) as directory:
                put_aside = self._log_was_put_aside(directory, run)
                words, identity = _end_of(directory, OLD_LOG_NAME if put_aside else LOG_NAME)
                if put_aside or not self._log_was_put_aside(directory, run):
                    return words
                # While we read; perhaps before, then what we read was the next run's.
                words_aside, identity_aside = _end_of(directory, OLD_LOG_NAME)
                return words if identity == identity_aside else words_aside
        except OSError:
            return b""

    def _log_was_put_aside(self, directory: int, run: str) -> bool:
        """Whether the log of ``run``, which has ended, is the old one by now.

        The script puts a log aside and then writes the next run's first status, so the kernel's times of the two tell:
        no clock of the container has a say.
        """
        status = parse_status(read_small(directory, STATUS_NAME, MAX_STATUS_BYTES))
        if status is None or status.run != run:
            return True
        try:
            aside = os.stat(OLD_LOG_NAME, dir_fd=directory, follow_symlinks=False).st_ctime_ns
        except FileNotFoundError:
            return False
        return aside > os.stat(STATUS_NAME, dir_fd=directory, follow_symlinks=False).st_ctime_ns

    def _load_status(self) -> EngineStatus | None:
        try:
            with opened_directory(self.path) as directory:
                return parse_status(read_small(directory, STATUS_NAME, MAX_STATUS_BYTES))
        except OSError:
            return None

    def look(self) -> tuple[EngineStatus | None, FileIdentity | None]:
        """Blocking: the status and then the identity of ``engine.alive``, ``None`` if there is no such FIFO."""
        status = self._load_status()
        try:
            found = (self.path / ALIVE_NAME).lstat()
        except OSError:
            return status, None
        return status, (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None


def _end_of(directory: int, name: str) -> tuple[bytes, FileIdentity]:
    with opened_regular(directory, name) as descriptor:
        found = os.fstat(descriptor)
        begin = max(0, found.st_size - _LAST_WORDS_BYTES)
        data = os.pread(descriptor, _LAST_WORDS_BYTES, begin)
    if begin:
        # From the middle of a line on, a prompt could look like the engine's own words.
        data = data.partition(b"\n")[2]
    return data, (found.st_dev, found.st_ino)


def _lies_there(directory: int, text: bytes) -> bool:
    """Whether the script is in place, byte for byte, under no other name; its mode is put right on the way."""
    try:
        with opened_regular(directory, SCRIPT_NAME) as descriptor:
            found = os.fstat(descriptor)
            if found.st_nlink != 1 or found.st_size != len(text) or os.read(descriptor, len(text) + 1) != text:
                return False
            if stat.S_IMODE(found.st_mode) != _SCRIPT_MODE:
                os.fchmod(descriptor, _SCRIPT_MODE)
            return True
    except OSError:
        return False  # not there, a link, a socket, another user's: writing it anew puts that right or names the cause


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, VolumeReason.ERROR)
        raise VolumeError(reason, f"{target}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class VolumeSample:
    """One look at the volume.

    ``alive``: the script of ``status.run`` holds ``engine.alive`` open; ``None`` if that is not known, because there
    is no status or no FIFO. A run that was seen gone stays gone.
    """

    status: EngineStatus | None
    alive: bool | None

    @property
    def over(self) -> bool:
        """Whether the run of ``status`` has ended, with a word or without."""
        return self.status is not None and (self.status.phase is Phase.EXITED or self.alive is False)


async def watch(
    volume: Volume,
    emit: Callable[[VolumeSample], None],
    *,
    ring: asyncio.Event | None = None,
    poll_seconds: float = 0.5,
) -> None:
    """Call ``emit`` with a first sample at once, then with every sample that differs; runs until cancelled.

    The FIFO wakes us: its end of file means that the script is gone, a byte in it that the status was replaced.
    Polling finds what cannot ring: a new FIFO, a volume that comes or goes. Who knows of news sets ``ring``.
    """
    loop = asyncio.get_running_loop()
    ring = ring or asyncio.Event()
    fifo = AliveFifo(volume.path / ALIVE_NAME, ring)
    last: VolumeSample | None = None
    gone: str | None = None
    try:
        while True:
            ring.clear()
            looked_at = loop.time()
            status, alive = await _look(volume, fifo)
            if status is None:
                alive = None
            elif alive is False:
                gone = status.run
            elif status.run == gone:
                alive = False
            if last is not None and last.alive and last.status and status and last.status.run != status.run:
                # A container that started again faster than we look: the run that held the last FIFO open is over.
                emit(VolumeSample(last.status, alive=False))
            sample = VolumeSample(status, alive)
            if sample != last:
                emit(sample)
                last = sample
            await fifo.rung(poll_seconds)
            await asyncio.sleep(max(0.0, looked_at + _SHORTEST_PAUSE_SECONDS - loop.time()))
    finally:
        fifo.close()


async def _look(volume: Volume, fifo: AliveFifo) -> tuple[EngineStatus | None, bool | None]:
    """A status and whether its script is there, so that the second never speaks of an older run than the first.

    A script puts its FIFO in place before its first status; so the FIFO found after a status is of that run or a later
    one, and its end of file is that run's end either way. The script's last act may be one more status: look once more.
    """
    status = None
    for _ in range(_LOOKS):
        known_end = fifo.identity if fifo.ended else None
        status, identity = await asyncio.to_thread(volume.look)
        alive = fifo.follow(identity)
        if alive is not False or identity == known_end:
            return status, alive
    return status, None  # FIFOs that end faster than we look: no script does that
