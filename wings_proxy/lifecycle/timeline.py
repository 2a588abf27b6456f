"""The states of the last hours, for people: what the engine was when, and why."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wings_proxy.lifecycle.state import Snapshot

_KEPT: Final = 50


@dataclass(frozen=True, slots=True)
class Entry:
    """A state that began at clock time `at`."""

    state: str
    reason: str
    at: float


class Timeline:
    """The newest states, oldest first; an engine that flaps for a week needs no more memory than one that does not."""

    def __init__(self, first: Snapshot) -> None:
        self._entries: deque[Entry] = deque(maxlen=_KEPT)
        self.changed(first)

    def changed(self, snapshot: Snapshot) -> None:
        """Take note of the state a transition led to."""
        self._entries.append(Entry(snapshot.state, snapshot.reason, snapshot.since))

    @property
    def entries(self) -> Sequence[Entry]:
        """What is known, oldest first."""
        return tuple(self._entries)
