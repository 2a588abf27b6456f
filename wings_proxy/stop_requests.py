"""What a signal to stop means: the first asks for the end, a later one forces it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_ECHO_SECONDS: Final = 0.5


class StopRequests:
    """Takes every SIGTERM, SIGINT or SIGHUP, and tells one wish that came twice from a second wish.

    One wish comes twice when whoever passes it on is not alone: a terminal signals the whole group and `npm` or `make`
    its child once more; the kernel sends a parent-death signal (prctl(2)) for each thread of the parent that was the
    child's parent in turn. That happens within milliseconds; a person needs longer.
    """

    def __init__(self, clock: Callable[[], float], *, ask: Callable[[], None], force: Callable[[], None]) -> None:
        self._clock = clock
        self._ask = ask
        self._force = force
        self._asked_at: float | None = None

    def __call__(self) -> None:
        """Take one signal."""
        if self._asked_at is None:
            self._asked_at = self._clock()
            self._ask()
        elif self._clock() - self._asked_at >= _ECHO_SECONDS:
            self._force()
