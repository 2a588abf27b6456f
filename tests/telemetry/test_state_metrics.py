"""What Prometheus sees of the engine's life."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from wings_proxy.engines.failure_reasons import Reason
from wings_proxy.lifecycle.state import Event, Failure, Outcome, ProbeResult, Progress, Snapshot, State, Transition
from wings_proxy.telemetry.state_metrics import StateMetrics


class Engine:
    """A snapshot to set by hand, and what a scrape makes of it."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(State.WAITING, 100.0, "not_published", "")
        self.now = 100.0
        self.registry = CollectorRegistry()
        self.metrics = StateMetrics(
            self.registry,
            snapshot=lambda: self.snapshot,
            clock=lambda: self.now,
            build={"version": "1.2", "engine_type": "vllm", "model_name": 'a"b\\c\n中'},
            failure_reasons=("killed", "crashed"),
        )

    def becomes(self, source: State, event: Event, target: State, reason: str = "") -> None:
        self.snapshot = Snapshot(target, self.now, reason, "")
        self.metrics.changed(Transition(source, event, target, 1.0))

    def looks(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.metrics.looked(snapshot)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_exactly_one_state_is_one() -> None:
    engine = Engine()
    for state in State:
        engine.snapshot = Snapshot(state, 0.0, "", "")
        values = {each: engine.value("wings_engine_state", state=each) for each in State}
        assert values == {each: float(each is state) for each in State}


def test_the_age_of_a_state() -> None:
    engine = Engine()
    engine.now = 107.5
    assert engine.value("wings_engine_state_age_seconds") == 7.5


def test_every_transition_there_can_be_is_counted_from_zero() -> None:
    engine = Engine()
    samples = {
        (sample.labels["state"], sample.labels["event"]): sample.value
        for family in engine.registry.collect()
        for sample in family.samples
        if sample.name == "wings_engine_state_transitions_total"
    }
    assert samples == {
        ("starting", "published"): 0,
        ("loading", "engine_started"): 0,
        ("ready", "healthy"): 0,
        ("unhealthy", "probes_failed"): 0,
        ("unhealthy", "stalled"): 0,
        ("stopping", "stop_requested"): 0,
        ("starting", "ended"): 0,
        ("failed", "crashed"): 0,
        ("failed", "deadline"): 0,
        ("draining", "drain"): 0,
    }
    engine.becomes(State.LOADING, Event.HEALTHY, State.READY)
    engine.becomes(State.UNHEALTHY, Event.HEALTHY, State.READY)
    assert engine.value("wings_engine_state_transitions_total", state="ready", event="healthy") == 2
    assert engine.value("wings_engine_state_transitions_total", state="failed", event="crashed") == 0


def test_every_failure_is_counted_once_whatever_the_state() -> None:
    engine = Engine()
    assert engine.value("wings_engine_failures_total", reason="killed") == 0
    killed = Failure(Reason.KILLED, "signal 9", 100.0, 137)
    for state in (State.FAILED, State.FAILED, State.STARTING, State.LOADING):
        engine.looks(Snapshot(state, 100.0, "", "", last_failure=killed))
    assert engine.value("wings_engine_failures_total", reason="killed") == 1
    # The next one says the same, and fails from `failed`: no transition, but another failure.
    engine.looks(Snapshot(State.FAILED, 100.0, "", "", last_failure=replace(killed, at=101.0)))
    engine.looks(Snapshot(State.DRAINING, 100.0, "", "", last_failure=Failure(Reason.LOAD_TIMEOUT, "", 102.0)))
    assert engine.value("wings_engine_failures_total", reason="killed") == 2
    assert engine.value("wings_engine_failures_total", reason="load_timeout") == 1


def test_every_probe_is_counted_once_by_how_it_ended() -> None:
    engine = Engine()
    counts = {outcome: engine.value("wings_engine_probe_results_total", outcome=outcome) for outcome in Outcome}
    assert counts == dict.fromkeys(Outcome, 0)
    first = ProbeResult(1, 100.0, Outcome.TIMEOUT)
    for probe in (first, first, None, ProbeResult(1, 101.0, Outcome.TIMEOUT), ProbeResult(1, 102.0, Outcome.HEALTHY)):
        engine.looks(Snapshot(State.READY, 100.0, "", "", last_probe=probe))
    assert engine.value("wings_engine_probe_results_total", outcome="timeout") == 2
    assert engine.value("wings_engine_probe_results_total", outcome="healthy") == 1


def test_stalls_are_counted() -> None:
    engine = Engine()
    assert engine.value("wings_engine_stalls_total") == 0
    engine.becomes(State.READY, Event.STALLED, State.UNHEALTHY)
    engine.becomes(State.READY, Event.PROBES_FAILED, State.UNHEALTHY)
    assert engine.value("wings_engine_stalls_total") == 1


def test_a_drain_is_timed_while_it_lasts_and_remembered_after() -> None:
    engine = Engine()
    assert engine.value("wings_drain_duration_seconds") is None
    engine.becomes(State.READY, Event.STOP_REQUESTED, State.STOPPING)
    engine.now = 103.0
    assert engine.value("wings_drain_duration_seconds") == 3.0
    engine.becomes(State.STOPPING, Event.ENDED, State.STARTING)
    engine.now = 200.0
    assert engine.value("wings_drain_duration_seconds") == 1.0
    engine.becomes(State.STARTING, Event.DRAIN, State.DRAINING)
    engine.now = 205.0
    assert engine.value("wings_drain_duration_seconds") == 5.0


def test_the_phases_of_a_load_are_timed() -> None:
    engine = Engine()

    def loading(now: float, phase: str | None, epoch: int = 1, state: State = State.LOADING) -> dict[str, float]:
        engine.now = now
        progress = None if phase is None else Progress(phase)
        engine.looks(Snapshot(state, 100.0, "", "", epoch=epoch, progress=progress))
        name = "wings_engine_load_phase_seconds"
        families = [family for family in engine.registry.collect() if family.name == name]
        return {sample.labels["phase"]: sample.value for family in families for sample in family.samples}

    assert loading(100.0, None) == {}
    assert loading(101.0, "weights") == {"weights": 0.0}
    assert loading(104.0, "weights") == {"weights": 3.0}
    assert loading(106.0, "compile") == {"weights": 5.0, "compile": 0.0}
    assert loading(109.0, None, state=State.READY) == {"weights": 5.0, "compile": 3.0}
    assert loading(500.0, None, state=State.READY) == {"weights": 5.0, "compile": 3.0}
    # The next run's load begins anew.
    assert loading(501.0, None, epoch=2) == {}
    assert loading(502.0, "weights", epoch=2) == {"weights": 0.0}
    assert loading(504.0, "weights", epoch=2, state=State.FAILED) == {"weights": 2.0}


def test_restarts_and_drift_are_the_snapshots() -> None:
    engine = Engine()
    assert engine.value("wings_engine_restarts_total") == 0
    assert engine.value("wings_config_drift") == 0
    engine.snapshot = Snapshot(
        State.READY, 0.0, "", "", restarts=3, run="a", generation="old", published_generation="new"
    )
    assert engine.value("wings_engine_restarts_total") == 3
    assert engine.value("wings_config_drift") == 1


def test_progress_is_there_only_while_there_is_any() -> None:
    engine = Engine()
    name = "wings_engine_load_progress_ratio"
    assert engine.value(name) is None
    engine.snapshot = Snapshot(State.LOADING, 0.0, "", "", progress=Progress("compile"))
    assert engine.value(name) is None
    engine.snapshot = Snapshot(State.LOADING, 0.0, "", "", progress=Progress("weights", 0.25))
    assert engine.value(name) == 0.25


def test_what_runs() -> None:
    engine = Engine()
    assert engine.value("wings_build_info", version="1.2", engine_type="vllm", model_name='a"b\\c\n中') == 1


def test_the_page_can_be_read_back_and_every_family_is_described_and_ours() -> None:
    engine = Engine()
    engine.becomes(State.LOADING, Event.DEADLINE, State.FAILED, "load_timeout")
    families = list(text_string_to_metric_families(generate_latest(engine.registry).decode()))
    assert len(families) == 9
    for family in families:
        assert family.name.startswith("wings_")
        assert family.documentation
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter")
        assert (family.type == "counter") == all(sample.name.endswith("_total") for sample in family.samples)


def test_two_registries_do_not_clash_and_one_notices_it() -> None:
    first, second = Engine(), Engine()
    assert first.registry is not second.registry
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        StateMetrics(first.registry, snapshot=lambda: first.snapshot, clock=lambda: 0.0, build={"version": "x"})
