"""Write to a descriptor that may block, without waiting for it.

A pipe nobody reads blocks its writer for good, a slow disk for seconds, and `O_NONBLOCK` is no way out: it would hold
for every process that shares the descriptor. So one thread does the writing; what it cannot keep up with is dropped.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import Final

# A few seconds of a busy proxy's lines; a reader that is away for longer is not coming back soon.
_MOST_BYTES: Final = 1024 * 1024


class LineWriter:
    """Writes what it is given, in its order. The thread begins with the first write and ends with `close`.

    It is a daemon: a descriptor that blocks for good must not keep the process from ending.
    """

    def __init__(self, descriptor: int, most_bytes: int = _MOST_BYTES) -> None:
        """Write to *descriptor*, keeping at most *most_bytes* that wait."""
        self._descriptor = descriptor
        self._most_bytes = most_bytes
        self._queue: queue.SimpleQueue[tuple[bytes, int] | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each written by one thread only: no lock.
        self._given = self._refused = 0
        self._taken = self._failed = 0

    @property
    def lost(self) -> int:
        """Lines that were never written."""
        return self._refused + self._failed

    def write(self, data: bytes, lines: int) -> None:
        """Have *data* written, which is so many *lines*; dropped if too much waits already."""
        if self._given - self._taken + len(data) > self._most_bytes:
            self._refused += lines
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()
        self._given += len(data)
        self._queue.put((data, lines))

    def flush(self, within: float) -> bool:
        """Wait until everything given so far is written, at most *within* seconds; return whether it is."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._queue.put(done)
        return done.wait(within)

    def close(self, within: float) -> None:
        """Write what is left, at most for *within* seconds, and end the thread if it can be."""
        if self._thread is not None and self.flush(within):
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            data, lines = item
            try:
                self._write(data)
            except OSError:
                self._failed += lines
            self._taken += len(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
