"""Whose the shared volume is: one sidecar's at a time.

Two on one volume (a `hostPath` of two pods, a second `serve` by hand) would take away each other's `hold` and write
over each other's script. The lock is flock(2) on the directory: no file that a full volume could refuse or somebody
remove, and the kernel gives it back however its holder ends.
"""

from __future__ import annotations

import fcntl
import os
import threading


class VolumeLock:
    """The lock of the directory that was asked for last; safe to use from several threads."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._changing = threading.Lock()

    def take(self, directory: int) -> bool:
        """Hold the lock of the open *directory* from here on; False if another process holds it.

        A file system that knows no locks locks nobody out.
        """
        found = os.fstat(directory)
        with self._changing:
            if self._identity == (found.st_dev, found.st_ino):
                return True
            # Another directory was mounted there, or the first one came back.
            self._close()
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                return True
            self._descriptor, self._identity = descriptor, (found.st_dev, found.st_ino)
            return True

    def release(self) -> None:
        """Give the lock back."""
        with self._changing:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None
