"""Metrics of the engine's life: its state, how often it changed, what failed, and which build this is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wings_proxy.lifecycle.state import (
    TABLE,
    Event,
    Failure,
    Outcome,
    ProbeResult,
    Progress,
    Snapshot,
    State,
    Transition,
)

# States that end with nothing in flight.
_LEAVING: Final = (State.STOPPING, State.DRAINING)
# Every one there can be, so that each counter exists at 0 before it is needed.
_TRANSITIONS: Final = sorted(
    {(target, event) for row in TABLE.values() for event, target in row.items() if isinstance(target, State)}
)


class LoadPhases:
    """How long each phase of the newest load took, the one that is on included."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._phase: str | None = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def see(self, snapshot: Snapshot, now: float) -> None:
        """Take the state as of *now*."""
        loading = snapshot.state is State.LOADING
        if loading and snapshot.epoch != self._epoch:
            self._epoch, self._phase = snapshot.epoch, None
            self._seconds.clear()
        phase = snapshot.progress.phase if loading and snapshot.progress is not None else None
        if phase == self._phase:
            return
        if self._phase is not None:
            self._seconds[self._phase] = now - self._since
        self._phase, self._since = phase, now

    def seconds(self, now: float) -> dict[str, float]:
        """Return the time of each phase there was."""
        return self._seconds if self._phase is None else {**self._seconds, self._phase: now - self._since}


class StateMetrics(Collector):
    """Reads the snapshot when scraped; counts what the supervisor announces."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        snapshot: Callable[[], Snapshot],
        clock: Callable[[], float],
        build: dict[str, str],
        failure_reasons: Iterable[str] = (),
    ) -> None:
        """*failure_reasons* are there at 0 before the first failure."""
        self._snapshot = snapshot
        self._clock = clock
        self._build = build
        self._transitions: Counter[tuple[State, Event]] = Counter()
        self._failures: Counter[str] = Counter(dict.fromkeys(failure_reasons, 0))
        self._probes: Counter[Outcome] = Counter()
        self._phases = LoadPhases()
        self._stalls = 0
        self._last_drain: float | None = None
        self._last_failure: Failure | None = None
        self._last_probe: ProbeResult | None = None
        registry.register(self)

    def changed(self, transition: Transition) -> None:
        """Count a transition."""
        self._transitions[transition.target, transition.event] += 1
        self._stalls += transition.event is Event.STALLED
        if transition.source in _LEAVING:
            self._last_drain = transition.lasted

    def looked(self, snapshot: Snapshot) -> None:
        """Count what is new in a snapshot; called after each fact, for some change no state.

        An engine may fail when it has failed before, or while it is leaving.
        """
        self._phases.see(snapshot, self._clock())
        failure, probe = snapshot.last_failure, snapshot.last_probe
        if failure is not None and failure is not self._last_failure:
            self._failures[failure.reason] += 1
        if probe is not None and probe is not self._last_probe:
            self._probes[probe.outcome] += 1
        self._last_failure, self._last_probe = failure, probe

    def describe(self) -> Iterator[Metric]:
        """Return the families, so that a registry notices a clash of names."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Return the families as of now."""
        snapshot, now = self._snapshot(), self._clock()
        state = GaugeMetricFamily("wings_engine_state", "1 for the state the engine is in.", labels=["state"])
        for each in State:
            state.add_metric([each], float(snapshot.state is each))
        yield state
        since = now - snapshot.since
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
        yield from self._load(snapshot.progress, now)
        probes = CounterMetricFamily("wings_engine_probe_results", "Health probes of the engine.", labels=["outcome"])
        for outcome in Outcome:
            probes.add_metric([outcome], self._probes[outcome])
        yield probes
        yield CounterMetricFamily(
            "wings_engine_stalls", "Times requests were in flight and nothing moved.", value=self._stalls
        )
        drain = since if snapshot.state in _LEAVING else self._last_drain
        if drain is not None:
            yield GaugeMetricFamily(
                "wings_drain_duration_seconds",
                "Time the engine's stop or our own is taking, or the last one took.",
                value=drain,
            )
        build = GaugeMetricFamily("wings_build_info", "1, labelled with what runs.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build

    def _load(self, progress: Progress | None, now: float) -> Iterator[Metric]:
        phases = GaugeMetricFamily(
            "wings_engine_load_phase_seconds", "Time each phase of the newest load took or is taking.", labels=["phase"]
        )
        for phase, seconds in self._phases.seconds(now).items():
            phases.add_metric([phase], seconds)
        if phases.samples:
            yield phases
        if progress is not None and progress.ratio is not None:
            yield GaugeMetricFamily(
                "wings_engine_load_progress_ratio", "How much of the present load phase is done.", value=progress.ratio
            )
