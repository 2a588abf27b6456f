"""When an engine that says 200 does no work: requests it holds, no byte of an answer, and counters that stand still.

Pure: what was seen comes in with its time. Three things must come together, for each alone is normal: a long prompt is
silent, a page of metrics can be late, and an engine without requests has nothing to do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

# How often the counters are looked at in a silence, of its limit; so much later than the limit a stall may be found.
_LOOKS: Final = 12
_LONGEST_PAUSE: Final = 5.0
_SHORTEST_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Counters:
    """What one look at the engine's counters brought.

    `published` is False for an engine that has none (metrics off): its silence proves nothing. `value` changes with
    any work the engine does, and is None if the page could not be read.
    """

    published: bool
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Stalled:
    """The engine of this epoch does no work."""

    epoch: int
    detail: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The engine of this epoch, found stalled before, works again."""

    epoch: int


class Verdict(enum.Enum):
    """What the counters say of the time since they were last looked at."""

    MOVED = enum.auto()
    STILL = enum.auto()
    UNKNOWN = enum.auto()


class StallWatch:
    """Follows one engine; a new epoch begins anew."""

    def __init__(self, limit: float) -> None:
        """Take how long nothing may move while requests are in flight, in seconds."""
        self._limit = limit
        self._epoch = -1
        # When it was last seen silent: a silence that began before is the same one.
        self._silent_at = float("-inf")
        self._value: float | None = None
        self._moved_at = float("-inf")
        self._stalled_at: float | None = None

    @property
    def pause(self) -> float:
        """Seconds from one judgement to the next."""
        return max(_SHORTEST_PAUSE, min(self._limit / _LOOKS, _LONGEST_PAUSE))

    @property
    def stalled(self) -> bool:
        """Whether the engine counted as stalled when it was last judged."""
        return self._stalled_at is not None

    def wants_look(self, now: float, epoch: int, silent_since: float | None) -> bool:
        """Whether the counters should be read: in a long silence, and for as long as the engine counts as stalled."""
        if epoch == self._epoch and self._stalled_at is not None:
            return True
        return silent_since is not None and now - self._quiet_since(epoch, silent_since) >= self._limit / 3

    def judge(
        self, now: float, epoch: int, *, silent_since: float | None, last_byte: float, counters: Counters | None
    ) -> Stalled | Moved | None:
        """Return the news of this moment; `counters` is None when nobody looked.

        `silent_since` is None when the engine holds no request, `last_byte` the time of the newest byte of an answer
        that took work.
        """
        if epoch != self._epoch:
            self._epoch, self._value, self._stalled_at = epoch, None, None
            self._moved_at = self._silent_at = float("-inf")
        if silent_since is not None:
            if self._stalled_at is None and silent_since >= self._silent_at:
                # Of the time before this silence the counters may tell what they like.
                self._value = None
            self._silent_at = now
        verdict = self._compare(counters)
        if verdict is Verdict.MOVED:
            self._moved_at = now
        if self._stalled_at is not None:
            if verdict is not Verdict.MOVED and last_byte <= self._stalled_at:
                return None
            self._stalled_at = None
            return Moved(epoch)
        if silent_since is None or verdict is not Verdict.STILL:
            return None
        if now - self._quiet_since(epoch, silent_since) < self._limit:
            return None
        self._stalled_at = now
        silence = f"requests in flight, and nothing moved for {self._limit:g} s"
        return Stalled(epoch, f"{silence}; over when an answer goes on or the engine's counters move")

    def _quiet_since(self, epoch: int, silent_since: float) -> float:
        return max(silent_since, self._moved_at) if epoch == self._epoch else silent_since

    def _compare(self, counters: Counters | None) -> Verdict:
        if counters is None or counters.value is None:
            # Nobody looked, the engine has none, or the page came late: that is no sign of anything.
            return Verdict.UNKNOWN
        before, self._value = self._value, counters.value
        if before is None:
            return Verdict.UNKNOWN
        return Verdict.STILL if before == counters.value else Verdict.MOVED
