"""Do a thing once for everybody who wants it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class SingleFlight(Generic[_Result]):
    """Shares one run of a coroutine function among the callers that come while it runs.

    There is no task of its own: the first caller does it, and should that one be cancelled, the next begins again. What
    the coroutine raises goes to the caller that ran it; the next tries for itself.
    """

    def __init__(self, do: Callable[[], Awaitable[_Result]]) -> None:
        self._do = do
        self._lock = asyncio.Lock()
        self._begun = 0
        self._done: tuple[int, _Result] | None = None

    async def __call__(self) -> _Result:
        """Return the result of a run that had not ended when this was called."""
        # In flight: that one will do. Else: one that begins now.
        enough = self._begun if self._lock.locked() else self._begun + 1
        async with self._lock:
            if self._done is not None and self._done[0] >= enough:
                return self._done[1]
            self._begun += 1
            result = await self._do()
            self._done = (self._begun, result)
            return result
