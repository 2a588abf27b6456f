"""How much of all that clients upload is taken in one turn of the loop, so that the turn ends soon.

Two hundred clients that send as fast as they can are fifty megabytes for each turn: a tenth of a second and more, and a
kubelet's probe waits for three turns. The rest stays where it costs nothing, in the kernel and with the clients.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

SHARES: Final = 16
"""Of a quarter of a megabyte each at most, which is what one read brings: some five milliseconds."""


class UploadPace:
    """Gives out the shares of each turn, to those who ask in the order they ask."""

    __slots__ = ("_begun", "_left", "_loop", "_shares", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, shares: int = SHARES) -> None:
        """Take the loop whose turns count, and how many shares each has."""
        self._loop = loop
        self._shares = self._left = shares
        self._waiting: deque[Callable[[], None]] = deque()
        self._begun = False
        """Whether the end of this turn is being waited for."""

    def take(self) -> bool:
        """Take a share if there is one now; whoever has to wait for one goes first."""
        if not self._left or self._waiting:
            return False
        self._give()
        return True

    def ask(self, use: Callable[[], None]) -> None:
        """Call *use* once there is a share for it, perhaps at once; it may ask again, and must not raise."""
        if self.take():
            use()
        else:
            self._waiting.append(use)

    async def share(self) -> None:
        """Wait for a share."""
        if not self.take():
            here: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(partial(_go_on, here))
            await here

    def _give(self) -> None:
        self._left -= 1
        if not self._begun:
            self._begun = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._begun = False
        self._left = self._shares
        waiting = self._waiting
        while self._left and waiting:
            use = waiting.popleft()
            self._give()
            use()


def _go_on(here: asyncio.Future[None]) -> None:
    if not here.done():  # then nobody waits any more
        here.set_result(None)
