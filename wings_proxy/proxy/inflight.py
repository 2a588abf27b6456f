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
        # Of the last silence that ended because its clients gave up: when, and how many seconds it had come to.
        self._given_up_at = self._given_up_after = 0.0
        self._given_up = False
        self._unread = 0
        self.count = 0
        self.at_engine = 0
        self.total = 0
        self.last_work = 0.0
        """Monotonic time, as the loop's, of the newest byte of an answer that took the engine's work; first 0.0."""

    def begin(self) -> None:
        """Count an admitted request."""
        self.count += 1
        self.total += 1

    def sent(self) -> None:
        """Note that the engine now holds one more complete request."""
        self._hold()
        self.at_engine += 1

    def stop_reading(self) -> None:
        """Note that the answer to one such request is not read now: its client has no room."""
        self._unread += 1
        self._let_go()

    def read_on(self) -> None:
        """Note that it is read again, or over."""
        self._hold()
        self._unread -= 1

    def end(self, *, sent: bool, given_up: bool = False) -> None:
        """Forget a request; *sent* says whether `sent` was called for it, *given_up* that no whole answer came in time.

        In whose time does not matter: the client left, or a deadline of ours passed.
        """
        if sent:
            self.at_engine -= 1
            self._given_up = self._given_up or given_up
            self._let_go()
        self.count -= 1
        if not self.count:
            waiters, self._drained = self._drained, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    @property
    def silent_since(self) -> float | None:
        """Loop time since when the engine holds requests and no work of it has come.

        None if it holds none, or none whose answer we read: what a client does not take is no silence of the engine.
        Clients that give up and come again do not end a silence: as long as it holds a request more than half of the
        time, that time adds up.
        """
        return max(self._busy_since, self.last_work) if self.at_engine > self._unread else None

    def _hold(self) -> None:
        """Begin a silence with the request that comes, or go on with the last one."""
        if self.at_engine > self._unread:
            return
        now, so_far = self._time(), self._given_up_after
        # One request in an hour is no silence of an hour, however many hours.
        goes_on = self.last_work <= self._given_up_at and now - self._given_up_at <= so_far
        self._busy_since = now - so_far if goes_on else now

    def _let_go(self) -> None:
        """Keep how long a silence was, unless its end was an answer."""
        if self.at_engine > self._unread:
            return
        if self._given_up:
            self._given_up_at = self._time()
            self._given_up_after = self._given_up_at - max(self._busy_since, self.last_work)
        self._given_up = False

    async def drained(self) -> None:
        """Return once nothing is in flight."""
        while self.count:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            await waiter
