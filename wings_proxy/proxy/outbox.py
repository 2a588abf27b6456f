"""What streams have for their clients, sent together.

An engine's step brings an event to every stream of its batch at once. Sending each as soon as it is read wakes the
clients' side for each, and that costs as much as all of our own code; the second of two in a row finds it awake. So
events wait until the loop has read what there is, within the same turn, and never for more than `MOST` others.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

MOST: Final = 64
"""How many wait at most: the first need not wait for a thousand."""


class Writer(Protocol):
    """Where bytes go."""

    def write(self, data: bytes) -> None:
        """Send *data*."""


class Outbox:
    """Holds bytes until the end of the loop's turn, in the order they came in."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the loop whose turns count."""
        self._loop = loop
        self._waiting: list[tuple[Writer, bytes]] = []

    def put(self, writer: Writer, data: bytes) -> None:
        """Have *writer* write *data* before the turn ends; who writes to it in another way must `flush` first."""
        waiting = self._waiting
        if not waiting:
            self._loop.call_soon(self.flush)
        waiting.append((writer, data))
        if len(waiting) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Write what waits now."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        rest = iter(waiting)
        try:
            for writer, data in rest:
                writer.write(data)
        finally:
            for writer, data in rest:  # one writer's failure is no other's
                self.put(writer, data)
