"""How many client connections there may be, and which one goes when there are too many: decided here, done elsewhere.

A connection is *idle* while no request of it is being answered: silent, between two requests, or in the middle of a
head. At the cap the one that has been idle longest makes room. When every connection is busy, a few more are let in all
the same, the *reserve*: a kubelet's probe must find an answer when nobody else does, so only probes are answered there.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

C = TypeVar("C")

RESERVE: Final = 16
"""Connections beyond the cap, kept for probes."""

_FILES_OF_OURS: Final = 64
"""Descriptors that are no client's: listeners, the volume, logs, probes, the loop's own."""

_MOST: Final = 20_000
"""Without a setting, however many descriptors there are: each connection also costs memory, some 10 KiB while it is
idle. What more it can be made to hold has bounds of its own (`bounded_connection.Bounds`, `runner`)."""

_MOST_WAITING: Final = 4096
"""No longer than the kernel's own queue."""


def cap_for(descriptors: int) -> int:
    """Return how many connections so many file descriptors carry: each may need a second one, to the engine."""
    return max(8, min(_MOST, most_for(descriptors) // 2))


def most_for(descriptors: int) -> int:
    """Return how many connections so many file descriptors carry at the most, if hardly any asks for something.

    One more, and nobody could be let in, probes neither.
    """
    return max(8, descriptors - _FILES_OF_OURS - RESERVE)


def waiting_for(descriptors: int, most: int) -> int:
    """Return how many connections may be accepted and not counted yet: a quarter of the descriptors the cap leaves.

    Most of the others are for connections to the engine.
    """
    return max(RESERVE, min(_MOST_WAITING, (most_for(descriptors) - most) // 4))


class ConnectionCap(Generic[C]):
    """The connections there are; `C` is anything hashable. Every operation takes the same time however many."""

    def __init__(self, most: int) -> None:
        """Take the cap; the reserve comes on top."""
        self.most = most
        self._all: set[C] = set()
        self._idle: dict[C, None] = {}
        self._reserve: dict[C, None] = {}
        self.evicted = 0
        self.refused = 0

    def __len__(self) -> int:
        """Return how many connections there are, those of the reserve included."""
        return len(self._all)

    def admit(self, connection: C) -> C | None:
        """Count a new connection, idle as yet; return the one to be closed now: an older one, itself, or none."""
        self._all.add(connection)
        if len(self._all) - len(self._reserve) <= self.most:
            self._idle[connection] = None
            return None
        if (oldest := next(iter(self._idle), None)) is not None:
            self._idle[connection] = None
            self.lost(oldest)
            self.evicted += 1
            return oldest
        self._reserve[connection] = None
        if len(self._reserve) <= RESERVE:
            return None
        # A kubelet's newest question before a stranger's oldest silence.
        oldest = next(iter(self._reserve))
        self.lost(oldest)
        self.refused += 1
        return oldest

    def probes_only(self, connection: C) -> bool:
        """Whether the connection is one of the reserve."""
        return connection in self._reserve

    def busy(self, connection: C) -> None:
        """Note that a request of the connection is being answered."""
        self._idle.pop(connection, None)

    def idle(self, connection: C) -> None:
        """Note that the connection waits for a request again."""
        if connection in self._all and connection not in self._reserve:
            self._idle[connection] = None

    def is_idle(self, connection: C) -> bool:
        """Whether no request of the connection is being answered."""
        return connection in self._idle

    def lost(self, connection: C) -> None:
        """Forget a connection that is closed; a second time is fine."""
        self._all.discard(connection)
        self._idle.pop(connection, None)
        self._reserve.pop(connection, None)
