"""How late the event loop is: what every stream waits for when something holds it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wings_proxy.proxy.request_metrics import Histogram

# Four timers a second cost nothing that can be measured, and see a quarter of a second in full.
_INTERVAL_SECONDS: Final = 0.25
_BOUNDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class LoopLag(Collector):
    """A timer that notes how late it fires. No task: between two of them nothing is there but the timer."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lateness = Histogram(_BOUNDS)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        registry.register(self)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to measure *loop*."""
        self._due = self._clock() + _INTERVAL_SECONDS
        self._timer = loop.call_later(_INTERVAL_SECONDS, self._fire, loop)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        # A timer of uvloop is good to a millisecond, and may be early by that.
        self._lateness.observe(max(0.0, self._clock() - self._due))
        self.start(loop)

    def describe(self) -> Iterator[Metric]:
        """Return the family, so that a registry notices a clash of names."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Return the family as of now."""
        family = HistogramMetricFamily(
            "wings_event_loop_lag_seconds", "How late a timer of the event loop fired, four times a second."
        )
        family.add_metric([], self._lateness.buckets(), self._lateness.sum)
        yield family
