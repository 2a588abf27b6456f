"""The timeline remembers what an operator asks for, and no more."""

from __future__ import annotations

from dataclasses import replace

from wings_proxy.lifecycle.state import Snapshot, State
from wings_proxy.lifecycle.timeline import Entry, Timeline

FIRST = Snapshot(State.WAITING, 1.0, "not_published", "")


def test_states_are_kept_in_order_from_the_first() -> None:
    timeline = Timeline(FIRST)
    timeline.changed(replace(FIRST, state=State.LOADING, since=2.5, reason="loading"))
    assert list(timeline.entries) == [Entry("waiting", "not_published", 1.0), Entry("loading", "loading", 2.5)]


def test_a_flapping_engine_needs_no_more_memory() -> None:
    timeline = Timeline(FIRST)
    for second in range(1000):
        timeline.changed(replace(FIRST, since=float(second)))
    assert [entry.at for entry in timeline.entries] == [float(second) for second in range(950, 1000)]
