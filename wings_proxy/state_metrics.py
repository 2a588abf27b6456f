"""Metrics of the engine's life: its state, how often it changed, what failed, and which build this is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wings_proxy.lifecycle import TABLE, Event, Snapshot, State, Transition

# Every one there can be, so that each counter exists at 0 before it is needed.
_TRANSITIONS: Final = sorted(
    {(target, event) for row in TABLE.values() for event, target in row.items() if isinstance(target, State)}
)


class StateMetrics(Collector):
    """Reads the snapshot when scraped; counts transitions as the supervisor announces them."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        snapshot: Callable[[], Snapshot],
        clock: Callable[[], float],
        build: dict[str, str],
    ) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._build = build
        self._transitions: Counter[tuple[State, Event]] = Counter()
        self._failures: Counter[str] = Counter()
        registry.register(self)

    def changed(self, transition: Transition, snapshot: Snapshot) -> None:
        """Count a transition; `snapshot` is the one it led to."""
        self._transitions[transition.target, transition.event] += 1
        if transition.target is State.FAILED:
            self._failures[snapshot.reason] += 1

    def describe(self) -> Iterator[Metric]:
        """Return the families, so that a registry notices a clash of names."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Return the families as of now."""
        snapshot = self._snapshot()
        state = GaugeMetricFamily("wings_engine_state", "1 for the state the engine is in.", labels=["state"])
        for each in State:
            state.add_metric([each], float(snapshot.state is each))
        yield state
        since = self._clock() - snapshot.since
        yield GaugeMetricFamily("wings_engine_state_age_seconds", "Time in the present state.", value=since)
        transitions = CounterMetricFamily(
            "wings_engine_state_transitions", "Changes of the engine's state.", labels=["state", "event"]
        )
        for target, event in _TRANSITIONS:
            transitions.add_metric([target, event], self._transitions[target, event])
        yield transitions
        failures = CounterMetricFamily(
            "wings_engine_failures", "Engine runs that failed, by reason.", labels=["reason"]
        )
        for reason, count in self._failures.items():
            failures.add_metric([reason], count)
        yield failures
        yield CounterMetricFamily("wings_engine_restarts", "Engine runs seen after the first.", value=snapshot.restarts)
        yield GaugeMetricFamily(
            "wings_config_drift",
            "1 if the engine runs another script than the one published, or the configuration file has changed.",
            value=snapshot.drifted,
        )
        if snapshot.progress is not None and snapshot.progress.ratio is not None:
            yield GaugeMetricFamily(
                "wings_engine_load_progress_ratio",
                "How much of the present load phase is done.",
                value=snapshot.progress.ratio,
            )
        build = GaugeMetricFamily("wings_build_info", "1, labelled with what runs.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build
