"""The FIFO ``engine.alive``: open as long as the launch script lives, and its doorbell.

End of file means that the script is gone, however it went: the kernel closes it even for a process that had no time to
say anything. A byte means that something on the volume was just replaced.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

FileIdentity = tuple[int, int]
"""Device and inode number."""

_READ_BYTES: Final = 65536
_READS: Final = 4


class AliveFifo:
    """The newest ``engine.alive``, kept open: while it is, no other file can get its identity."""

    def __init__(self, path: Path, ring: asyncio.Event) -> None:
        """`ring` is set when there is news; whoever looks clears it first."""
        self.identity: FileIdentity | None = None
        self.ended = False
        self._path: Final = path
        self._descriptor: int | None = None
        self._ring: Final = ring

    def follow(self, identity: FileIdentity | None) -> bool | None:
        """Change over to the FIFO at the path if it is another one; say whether somebody holds it open."""
        if identity != self.identity:
            self.close()
            if identity is not None:
                self._open()
        if self._descriptor is None:
            return None
        self.ended = self.ended or self._read_to_end(self._descriptor)
        return not self.ended

    async def rung(self, seconds: float) -> None:
        """Wait until there is news, at most ``seconds``."""
        if self._descriptor is not None and not self.ended:
            asyncio.get_running_loop().add_reader(self._descriptor, self._on_readable, self._descriptor)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ring.wait()
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)

    def close(self) -> None:
        """Let the FIFO go."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
        self.identity, self.ended, self._descriptor = None, False, None

    def _open(self) -> None:
        # On the loop, so that no cancelled thread can leave a descriptor behind: O_NONBLOCK waits for nobody.
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        found = os.fstat(descriptor)
        if not stat.S_ISFIFO(found.st_mode):
            os.close(descriptor)
            return
        self.identity, self._descriptor = (found.st_dev, found.st_ino), descriptor

    def _on_readable(self, descriptor: int) -> None:
        # Level-triggered: without this a FIFO at its end, or one that is being flooded, keeps the loop busy.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._ring.set()

    @staticmethod
    def _read_to_end(descriptor: int) -> bool:
        """Empty the FIFO; True at end of file. Bounded: with more in it somebody is writing, hence there."""
        for _ in range(_READS):
            try:
                if not os.read(descriptor, _READ_BYTES):
                    return True
            except BlockingIOError:
                return False
        return False
