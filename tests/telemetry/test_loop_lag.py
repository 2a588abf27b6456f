"""A loop that is held up says for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from wings_proxy.telemetry.loop_lag import LoopLag


class Clock:
    """Monotonic time, set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def measured() -> tuple[LoopLag, Clock, Callable[[str], float | None]]:
    registry, clock = CollectorRegistry(), Clock()
    lag = LoopLag(registry, clock=clock)
    return lag, clock, lambda bound: registry.get_sample_value("wings_event_loop_lag_seconds_bucket", {"le": bound})


async def test_a_timer_that_fires_late_is_a_loop_that_was_held_up() -> None:
    lag, clock, within = measured()
    loop = asyncio.get_running_loop()
    lag.start(loop)
    clock.now = 100.25 + 0.07
    lag._fire(loop)
    # Early, as a timer of uvloop may be.
    clock.now += 0.249
    lag._fire(loop)
    assert (within("0.002"), within("0.05"), within("0.1"), within("+Inf")) == (1, 1, 2, 2)
    lag.stop()


async def test_it_goes_on_by_itself_until_it_is_stopped() -> None:
    lag, _, within = measured()
    lag.stop()
    assert within("+Inf") == 0
    lag.start(asyncio.get_running_loop())
    async with asyncio.timeout(40):
        while not within("+Inf"):  # noqa: ASYNC110 - what is measured is the loop itself
            await asyncio.sleep(0.01)
    lag.stop()
    seen = within("+Inf")
    await asyncio.sleep(0)
    assert within("+Inf") == seen
