"""How much all unfinished heads together may hold, and whose goes when they hold more: decided here, done elsewhere."""

from __future__ import annotations

from typing import Generic, TypeVar

C = TypeVar("C")


class HeadBudget(Generic[C]):
    """The heads that have begun and not ended; `C` is anything hashable. A bound for each is none for thousands."""

    def __init__(self, most_bytes: int) -> None:
        """Take what all of them may come to."""
        self._most_bytes = most_bytes
        self._sizes: dict[C, int] = {}
        self._bytes = 0

    def grow(self, connection: C, size: int) -> list[C]:
        """Count so many more bytes of a connection's head; return whose heads go now, those that began first.

        A head that somebody means is here within moments.
        """
        self._sizes[connection] = self._sizes.get(connection, 0) + size
        self._bytes += size
        gone = []
        while self._bytes > self._most_bytes:
            oldest = next(iter(self._sizes))
            self.done(oldest)
            gone.append(oldest)
        return gone

    def done(self, connection: C) -> None:
        """Forget a head that ended, or whose connection did; a second time is fine."""
        self._bytes -= self._sizes.pop(connection, 0)
