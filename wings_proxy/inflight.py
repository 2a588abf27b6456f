"""Which requests are in flight, and since when the engine has been silent about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Inflight:
    """Counts requests between admission and their last byte; the forwarder is the only writer.

    `count` is every admitted request; `at_engine` those the engine holds completely, which are the only ones
    it can be late with: a client's slow upload is no fault of the engine.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        """Take the loop's clock, in seconds."""
        self._time = time
        self._drained: list[asyncio.Future[None]] = []
        self._busy_since = 0.0
        self.count = 0
        self.at_engine = 0
        self.total = 0
        self.last_byte = 0.0
        """Monotonic time, as the loop's, of the newest byte from the engine on any stream; 0.0 before the first."""

    def begin(self) -> None:
        """Count an admitted request."""
        self.count += 1
        self.total += 1

    def sent(self) -> None:
        """Note that the engine now holds one more complete request."""
        if not self.at_engine:
            self._busy_since = self._time()
        self.at_engine += 1

    def end(self, *, sent: bool) -> None:
        """Forget a request; *sent* says whether `sent` was called for it."""
        if sent:
            self.at_engine -= 1
        self.count -= 1
        if not self.count:
            waiters, self._drained = self._drained, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    @property
    def silent_since(self) -> float | None:
        """Loop time since when the engine holds requests and has sent no byte; None if it holds none."""
        return max(self._busy_since, self.last_byte) if self.at_engine else None

    async def drained(self) -> None:
        """Return once nothing is in flight."""
        while self.count:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            await waiter
