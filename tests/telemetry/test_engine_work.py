"""What a look at the engine's counters brings."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from wings_proxy.engines.metrics import EngineSample
from wings_proxy.lifecycle.stall import Counters
from wings_proxy.telemetry.engine_scrape import EnginePage, ScrapeOutcome
from wings_proxy.telemetry.engine_work import EngineWork


def ok(progress: float | None) -> EnginePage:
    return EnginePage(ScrapeOutcome.OK, sample=EngineSample(progress=progress))


def work(pages: Iterable[EnginePage], *, has_requests: bool = True) -> EngineWork:
    left = iter(pages)

    async def page() -> EnginePage:
        return next(left)

    return EngineWork(page, has_requests=lambda: has_requests, pause=0.0)


@pytest.mark.parametrize(
    ("page", "counters"),
    [
        (ok(3.0), Counters(published=True, value=3.0)),
        (ok(None), Counters(published=False)),
        (EnginePage(ScrapeOutcome.FAILED), Counters(published=True)),
        (EnginePage(ScrapeOutcome.OFF), Counters(published=False)),
        (EnginePage(ScrapeOutcome.IDLE), Counters(published=False)),
    ],
)
async def test_a_look(page: EnginePage, counters: Counters) -> None:
    assert await work([page]).counters() == counters


@pytest.mark.parametrize(
    ("pages", "goes_on"),
    [
        ([ok(3.0), ok(4.0)], True),
        ([ok(3.0), ok(3.0)], False),
        ([ok(3.0), EnginePage(ScrapeOutcome.FAILED)], False),
        ([EnginePage(ScrapeOutcome.FAILED)], False),
        ([EnginePage(ScrapeOutcome.OFF)], False),
    ],
)
async def test_two_looks_tell_whether_it_goes_on(pages: list[EnginePage], *, goes_on: bool) -> None:
    assert await work(pages).goes_on() is goes_on


async def test_without_requests_nobody_looks() -> None:
    assert await work([], has_requests=False).goes_on() is False
