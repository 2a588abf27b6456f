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

from wings_proxy.alive_fifo import AliveFifo, FileIdentity
from wings_proxy.atomic_file import opened_directory, opened_regular, read_small, remove_leftovers, replace
from wings_proxy.engine_status import MAX_STATUS_BYTES, EngineStatus, parse_status
from wings_proxy.launch import Script

SCRIPT_NAME: Final = "start_command.sh"
STATUS_NAME: Final = "engine.status"
ALIVE_NAME: Final = "engine.alive"
LOG_NAME: Final = "engine.log"
HOLD_NAME: Final = "hold"

# Readable and runnable by whatever user the engine's image has.
_SCRIPT_MODE: Final = 0o755
_HOLD_MODE: Final = 0o644

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

    def __init__(self, path: Path) -> None:
        self.path: Final = path

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

    async def release_hold(self) -> None:
        """Let every run go; no hold there is fine. Raises :class:`VolumeError`."""
        await asyncio.to_thread(self._release_hold)

    def _publish(self, text: bytes) -> bool:
        with _translated(self.path / SCRIPT_NAME), opened_directory(self.path) as directory:
            remove_leftovers(directory, (SCRIPT_NAME, HOLD_NAME))
            if _lies_there(directory, text):
                return False
            replace(directory, SCRIPT_NAME, text, _SCRIPT_MODE, durable=True)
            return True

    def _take_hold(self, content: bytes) -> None:
        with _translated(self.path / HOLD_NAME), opened_directory(self.path) as directory:
            # Not durable: no run survives a power failure, and the first request of this one is waiting for us.
            replace(directory, HOLD_NAME, content, _HOLD_MODE, durable=False)

    def _release_hold(self) -> None:
        hold = self.path / HOLD_NAME
        try:
            hold.unlink()
        except OSError:
            # Also when the volume is gone, or read-only with nothing there: what matters is that no hold is left.
            with _translated(hold), suppress(FileNotFoundError, NotADirectoryError):
                hold.lstat()
                raise

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
