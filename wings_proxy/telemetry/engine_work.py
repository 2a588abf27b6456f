"""Whether the engine works, by its own counters: what the stall watch and a failed probe ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from wings_proxy.lifecycle.stall import Counters
from wings_proxy.telemetry.engine_scrape import EnginePage, ScrapeOutcome


class EngineWork:
    """Looks at the engine's page of metrics; `page` is the fetch that `/metrics` shares."""

    def __init__(
        self, page: Callable[[], Awaitable[EnginePage]], *, has_requests: Callable[[], bool], pause: float = 1.0
    ) -> None:
        """Take how to look, whether the engine holds requests, and the seconds between two looks at a busy engine."""
        self._page = page
        self._has_requests = has_requests
        self._pause = pause

    async def counters(self) -> Counters:
        """Look once."""
        page = await self._page()
        match page.outcome:
            case ScrapeOutcome.OK:
                return Counters(page.sample.progress is not None, page.sample.progress)
            case ScrapeOutcome.FAILED:
                return Counters(published=True)
            case ScrapeOutcome.OFF | ScrapeOutcome.IDLE:
                return Counters(published=False)

    async def goes_on(self) -> bool:
        """Whether the counters move, by two looks; without requests there is nothing to be busy with."""
        if not self._has_requests():
            return False
        first = await self.counters()
        if first.value is None:
            return False
        await asyncio.sleep(self._pause)
        return (await self.counters()).value not in (None, first.value)
