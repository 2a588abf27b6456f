"""The engine's life: stories as they happen in a pod, and the table they are told from.

A story tells facts and says what must follow: every transition and effect, in order. The stories are written by hand
from what operators see; the mutation test at the end checks that they notice every cell of the table that a fact can
reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.lifecycle.life import (
    HEALTHY,
    IN_STATE,
    REFUSED,
    RULES,
    TIMEOUT,
    UNHEALTHY,
    Life,
    crashed,
    draining,
    exited,
    loading,
    never_loaded,
    ready,
    running,
    serving,
    starting,
    stop_requested,
    stopping,
    unhealthy,
    waiting,
)
from wings_proxy.engines.failure_reasons import Diagnosis, Reason
from wings_proxy.handover.engine_status import Phase
from wings_proxy.handover.sidecar_record import SidecarRecord
from wings_proxy.lifecycle import machine
from wings_proxy.lifecycle.state import (
    TABLE,
    Cell,
    Event,
    Failure,
    Outcome,
    ProbeResult,
    Progress,
    Rules,
    Snapshot,
    State,
)

Story = Callable[[], None]
STORIES: list[Story] = []


def story(tell: Story) -> Story:
    STORIES.append(tell)
    return tell


# -- starting ----------------------------------------------------------------------------------------------------------


@story
def cold_start() -> None:
    life = Life()
    assert life.says == ("waiting", "not_published")
    assert life.sees(None) == []
    assert life.publishes() == ["published: waiting -> starting"]
    assert life.says == ("starting", "engine_not_started")
    # The engine's image is being pulled: this takes as long as it takes.
    assert life.waits(100_000) == []
    assert life.probe(REFUSED) == []
    assert life.due_in() is None
    assert life.sees(running()) == ["EMPTY_POOL", "engine_started: starting -> loading", "PROBE_SOON"]
    assert life.says == ("loading", "loading")
    assert life.probe(REFUSED) == []
    assert life.probe(UNHEALTHY) == []
    assert (life.door, life.it().healthy) == ("closed", False)
    assert life.waits(10) == []
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.says == ("ready", "")
    assert (life.door, life.it().healthy) == ("open", True)
    since = life.it().since
    assert life.waits(5) == []
    assert life.probe(HEALTHY) == []
    assert life.it().since == since
    assert (life.it().restarts, life.it().last_failure, life.it().ready_in_run) == (0, None, True)


@story
def the_engine_was_there_before_us() -> None:
    """The sidecar restarts and adopts: ready after one probe, whatever comes first."""
    life = Life()
    assert life.sees(running()) == ["EMPTY_POOL", "engine_started: waiting -> loading", "PROBE_SOON"]
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.publishes() == []
    assert (life.it().published_generation, life.it().generation, life.it().drifted) == ("g1", "g1", False)
    assert life.it().restarts == 0


@story
def the_volume_is_slow_and_publishing_ends_in_any_state() -> None:
    for state, make in IN_STATE.items():
        life = make()
        life.serves(1)
        life.takes_hold()
        before = life.it()
        if state is State.WAITING:
            assert life.publishes("g2") == ["published: waiting -> starting"]
        else:
            assert life.publishes("g2") == []
            assert (life.it().state, life.it().since) == (before.state, before.since)
        assert life.it().published_generation == "g2"


@story
def an_engine_without_any_file() -> None:
    """Started by hand next to us: HTTP alone decides."""
    life = Life()
    assert life.probe(HEALTHY) == ["healthy: waiting -> ready"]
    assert life.sees(None) == []
    assert (life.door, life.it().run) == ("open", None)
    assert life.probe(REFUSED) == ["PROBE_SOON"]
    assert life.probe(REFUSED) == ["probes_failed: ready -> unhealthy"]
    assert life.probe(HEALTHY) == ["healthy: unhealthy -> ready"]
    life = starting()
    assert life.probe(HEALTHY) == ["healthy: starting -> ready"]


@story
def a_volume_that_cannot_be_written_is_a_reason_to_wait() -> None:
    life = Life()
    life.core.publish_failed("volume_full", "no space left")
    assert life.says == ("waiting", "volume_full")
    assert life.it().detail == "no space left"
    assert life.publishes() == ["published: waiting -> starting"]
    # The script was lost again before the engine ran it, and cannot be put back.
    life.core.publish_failed("volume_missing", "no such directory")
    assert life.says == ("starting", "volume_missing")
    assert life.publishes() == []
    assert life.says == ("starting", "engine_not_started")
    life.sees(running())
    life.core.publish_failed("volume_missing", "no such directory")
    assert life.says == ("loading", "loading")


@story
def what_ended_before_we_came_is_history() -> None:
    for old, alive in ((exited(1), True), (exited(0, asked=True), False), (running(), False)):
        life = Life()
        assert life.sees(old, alive=alive) == []
        assert life.says == ("waiting", "not_published")
        assert (life.it().last_failure, life.it().generation) == (None, None)
        assert life.sees(old, alive=False) == []
        assert life.publishes() == ["published: waiting -> starting"]
        assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: starting -> loading", "PROBE_SOON"]
        assert life.it().restarts == 1


@story
def what_ends_between_the_first_look_and_the_second_is_news() -> None:
    life = Life()
    assert life.sees(None) == []
    assert life.sees(exited(2)) == [
        "EMPTY_POOL",
        "engine_started: waiting -> loading",
        "PROBE_SOON",
        "EMPTY_POOL",
        "crashed: loading -> failed",
    ]


@story
def a_stop_of_a_run_begun_before_us() -> None:
    life = Life()
    assert life.sees(stop_requested()) == [
        "EMPTY_POOL",
        "engine_started: waiting -> loading",
        "PROBE_SOON",
        "stop_requested: loading -> stopping",
    ]


# -- loading -----------------------------------------------------------------------------------------------------------


@story
def a_load_that_gets_nowhere() -> None:
    life = loading()
    assert life.waits(299.9) == []
    assert life.waits(0.1) == ["deadline: loading -> failed"]
    assert life.says == ("failed", "load_timeout")
    assert life.it().detail == "no progress for 300 s while loading"
    assert life.it().last_failure == Failure(Reason.LOAD_TIMEOUT, "no progress for 300 s while loading", life.now)
    assert life.waits(10_000) == []
    # It only was slow.
    assert life.probe(REFUSED) == []
    assert life.probe(HEALTHY) == ["healthy: failed -> ready"]
    assert life.last_failure()
    assert (life.door, life.it().reason) == ("open", "")


@story
def a_load_that_goes_on_may_take_for_ever() -> None:
    life = loading()
    for done in range(1, 20):
        assert life.waits(299) == []
        assert life.log_grows(Progress("weights", done / 20) if done % 2 else None) == []
    assert life.it().progress == Progress("weights", 19 / 20)
    assert life.says == ("loading", "loading")
    assert life.it().detail == "loading: weights"
    assert life.waits(299) == []
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.it().progress is None
    assert life.log_grows(Progress("server")) == []
    assert (life.it().progress, life.it().reason) == (None, "")


@story
def another_runs_log_is_no_progress() -> None:
    life = loading()
    old = life.it().epoch
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: loading -> loading", "PROBE_SOON"]
    assert life.waits(299) == []
    assert life.log_grows(Progress("weights", 0.9), epoch=old) == []
    assert life.it().progress is None
    assert life.waits(1) == ["deadline: loading -> failed"]


@story
def each_run_has_its_own_time_to_load() -> None:
    life = loading()
    assert life.log_grows(Progress("weights", 0.5)) == []
    assert life.waits(299) == []
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: loading -> loading", "PROBE_SOON"]
    assert (life.it().progress, life.it().since, life.it().restarts) == (None, life.now, 1)
    assert life.waits(299) == []
    assert life.waits(1) == ["deadline: loading -> failed"]


@story
def several_good_probes_can_be_asked_for() -> None:
    life = Life(Rules(3, 2, 300, 5, 60, 120, None))
    assert life.probe(HEALTHY) == ["PROBE_SOON"]
    # Those of one run do not count for the next.
    life.publishes()
    life.sees(running())
    assert life.probe(HEALTHY) == ["PROBE_SOON"]
    life.sees(running("b"))
    assert life.probe(HEALTHY) == ["PROBE_SOON"]
    assert life.probe(TIMEOUT) == []
    assert life.probe(HEALTHY) == ["PROBE_SOON"]
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]


@story
def a_foreign_server_is_not_the_engine() -> None:
    life = loading()
    for _ in range(5):
        assert life.probe(Outcome.FOREIGN) == []
    assert life.state == "loading"


@story
def the_engine_ends_while_it_loads() -> None:
    life = loading()
    life.log_grows(Progress("weights", 0.5))
    assert life.sees(exited(1)) == ["EMPTY_POOL", "crashed: loading -> failed"]
    assert life.says == ("failed", "crashed")
    assert life.it().progress is None
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: failed -> loading", "PROBE_SOON"]
    assert life.sees(exited(1, "b")) == ["EMPTY_POOL", "crashed: loading -> failed"]
    assert life.it().restarts == 1  # a crash loop shows as failed, with its count


# -- ready and back ----------------------------------------------------------------------------------------------------


@story
def three_failed_probes_in_a_row() -> None:
    life = ready()
    assert life.probe(TIMEOUT) == []
    assert life.probe(UNHEALTHY) == []
    assert life.probe(HEALTHY) == []
    assert life.probe(TIMEOUT) == []
    assert life.probe(Outcome.BROKEN) == []
    assert life.probe(TIMEOUT) == ["probes_failed: ready -> unhealthy"]
    assert life.says == ("unhealthy", "probe_timeout")
    assert life.it().detail == "how"
    # It may only be busy: who comes is let through.
    assert (life.door, life.it().healthy) == ("open", False)
    for _ in range(5):
        assert life.probe(TIMEOUT) == []
    assert life.probe(HEALTHY) == ["healthy: unhealthy -> ready"]
    assert life.probe(TIMEOUT) == []
    assert life.probe(TIMEOUT) == []
    assert life.probe(HEALTHY) == []


@story
def refused_twice_is_enough() -> None:
    life = ready()
    assert life.probe(REFUSED) == ["PROBE_SOON"]
    assert life.probe(REFUSED) == ["probes_failed: ready -> unhealthy"]
    assert life.says == ("unhealthy", "probe_refused")


@story
def refused_once_is_an_accident() -> None:
    life = ready()
    assert life.probe(REFUSED) == ["PROBE_SOON"]
    assert life.probe(HEALTHY) == []
    assert life.probe(REFUSED) == ["PROBE_SOON"]
    assert life.probe(TIMEOUT) == []
    # The third failure in a row, of whatever kind.
    assert life.probe(REFUSED) == ["probes_failed: ready -> unhealthy"]


@story
def one_failure_is_enough_where_asked_for() -> None:
    life = Life(Rules(1, 1, 300, 5, 60, 120, None))
    life.probe(HEALTHY)
    assert life.probe(REFUSED) == ["probes_failed: ready -> unhealthy"]


@story
def busy_is_not_dead() -> None:
    life = ready()
    for outcome in (TIMEOUT, Outcome.BROKEN, UNHEALTHY) * 3:
        assert life.probe(outcome, busy=True) == []
    for _ in range(3):
        # A stream that moves is as good a sign of life as a 200: two long prefills an hour apart are no row.
        assert life.probe(TIMEOUT) == []
        assert life.probe(TIMEOUT) == []
        assert life.probe(TIMEOUT, busy=True) == []
        assert life.probe(TIMEOUT) == []
        assert life.probe(TIMEOUT) == []
        # So is a counter that moves, for a prompt so long that no stream does.
        assert life.probe(TIMEOUT, worked=True) == []
    assert life.state == "ready"


@story
def an_engine_that_says_200_and_does_nothing() -> None:
    life = serving()
    assert life.stalls() == ["stalled: ready -> unhealthy"]
    assert life.says == ("unhealthy", "stalled")
    # It said so all the time; only work is believed.
    assert life.probe(HEALTHY) == []
    assert life.door == "open"
    assert life.moves() == ["PROBE_SOON"]
    assert life.moves() == []
    assert life.probe(HEALTHY) == ["healthy: unhealthy -> ready"]
    assert life.probe(HEALTHY) == []


@story
def a_stalled_engine_that_is_replaced_starts_with_a_clean_slate() -> None:
    life = serving()
    life.stalls()
    life.sees(running("b"))
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]


@story
def an_engine_that_stalls_while_it_stops_is_let_go() -> None:
    life = serving()
    life.sees(stop_requested())
    assert life.stalls() == ["RELEASE_HOLD"]
    assert life.stalls() == []
    assert life.state == "stopping"


@story
def an_engine_that_had_stalled_when_it_was_asked_to_stop_is_let_go() -> None:
    life = serving()
    life.stalls()
    # The kubelet's answer to a failed liveness probe: the container has only the probe's own grace.
    assert life.sees(stop_requested()) == ["stop_requested: unhealthy -> stopping", "RELEASE_HOLD"]
    assert life.sees(stop_requested()) == []
    # So is one that was lost for so long that the probe fails, whatever it was lost by.
    for seconds, released in ((119, []), (120, ["RELEASE_HOLD"])):
        life = serving()
        for _ in range(3):
            life.probe(TIMEOUT)
        life.waits(seconds)
        assert life.sees(stop_requested()) == ["stop_requested: unhealthy -> stopping", *released]
    # One that works again before it is asked is waited for as any other.
    life = serving()
    life.stalls()
    life.moves()
    assert life.sees(stop_requested()) == ["stop_requested: unhealthy -> stopping"]


@story
def a_stall_changes_nothing_where_it_says_nothing_new() -> None:
    for make in (waiting, starting, loading, unhealthy, crashed, draining):
        life = make()
        life.serves(1)
        life.takes_hold()
        state = life.state
        assert life.stalls() == []
        assert life.state == state
    life = unhealthy()
    life.stalls()
    # What the probes had found is the older news; its 200 alone does not outweigh the stall.
    assert life.probe(HEALTHY) == []
    life.moves()
    assert life.probe(HEALTHY) == ["healthy: unhealthy -> ready"]


@story
def a_stall_of_another_run_is_history() -> None:
    life = ready()
    assert life.stalls(epoch=life.it().epoch - 1) == []
    assert life.state == "ready"
    life.stalls()
    assert life.moves(epoch=life.it().epoch - 1) == []
    assert life.probe(HEALTHY) == []


@story
def somebody_else_on_the_engines_port() -> None:
    life = starting()
    life.probe(Outcome.FOREIGN)
    assert life.says == ("starting", "foreign_server")
    life.probe(REFUSED)
    assert life.says == ("starting", "engine_not_started")
    life = loading()
    life.probe(Outcome.FOREIGN)
    assert life.says == ("loading", "foreign_server")
    life.probe(REFUSED)
    assert life.says == ("loading", "loading")
    life.probe(Outcome.FOREIGN)
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.says == ("ready", "")
    life.probe(Outcome.FOREIGN)
    assert life.says == ("ready", "")


@story
def an_engine_adopted_while_it_served_was_ready_once() -> None:
    life = Life()
    life.core.found_hold("a")
    life.sees(running("a"))
    assert life.state == "loading"
    assert life.it().ready_in_run
    life.sees(running("b"))
    assert not life.it().ready_in_run
    life = Life()
    life.core.found_hold("b")
    life.sees(running("a"))
    assert not life.it().ready_in_run
    life.sees(running("b"))
    assert not life.it().ready_in_run


def record(run: str = "a", generation: str = "g1", *, ready: bool = True, began: float | None = None) -> SidecarRecord:
    return SidecarRecord(run, generation, ready, began, "g1", 90.0)


def adopting(known: SidecarRecord) -> Life:
    """A sidecar that starts beside run `a` of `g1`, which is on."""
    life = Life()
    life.core.found_record(known, life.now)
    life.publishes()
    assert life.sees(running()) == ["EMPTY_POOL", "engine_started: starting -> loading", "PROBE_SOON"]
    return life


@story
def an_adopted_engine_that_hangs_is_unhealthy_although_it_held_no_request() -> None:
    life = adopting(record())
    assert life.it().detail == "the engine was ready before this sidecar started, and has not answered it yet"
    assert life.it().eta(life.now) is None
    assert life.probe(TIMEOUT) == life.probe(TIMEOUT) == []
    assert life.probe(TIMEOUT) == ["probes_failed: loading -> unhealthy"]
    assert life.says == ("unhealthy", "probe_timeout")
    life.waits(119.9)
    assert life.engine_alive()
    life.waits(0.1)
    assert not life.engine_alive()
    assert life.probe(HEALTHY) == ["healthy: unhealthy -> ready"]
    assert life.engine_alive()


@story
def an_adopted_engine_that_answers_is_ready_and_its_load_is_not_measured() -> None:
    life = adopting(record(began=900.0))
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    life.sees(running("b"))
    assert not life.it().ready_in_run
    assert life.it().eta(life.now) == 90


@story
def a_load_goes_on_over_a_restart_of_the_sidecar() -> None:
    life = adopting(record(ready=False, began=970.0))
    assert (life.it().ready_in_run, life.it().eta(life.now)) == (False, 60)
    # It loads, and is not counted against.
    assert [life.probe(TIMEOUT) for _ in range(4)] == [[]] * 4
    life.waits(50)
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    # From its true beginning on.
    life.sees(running("b"))
    assert life.it().eta(life.now) == 80


@story
def a_record_of_another_run_or_script_says_nothing_of_this_one() -> None:
    for other in (record("b"), record(generation="g2")):
        life = adopting(other)
        assert not life.it().ready_in_run
        assert life.it().load_began is None
        assert [life.probe(TIMEOUT) for _ in range(4)] == [[]] * 4
    # How long the last load took is of a script, not of a run.
    life = Life()
    life.core.found_record(record("b"), life.now)
    life.sees(None)
    life.sees(running())
    assert life.it().eta(life.now) == 90


@story
def a_record_that_cannot_be_is_none() -> None:
    life = adopting(record(began=1000.1))
    assert not life.it().ready_in_run
    assert life.it().expected_load is None
    life = adopting(replace(record(), loaded_generation=None, load_seconds=None))
    assert life.it().ready_in_run
    assert life.it().expected_load is None


@story
def what_is_kept_for_the_next_process() -> None:
    life = Life()
    assert life.core.record is None
    life.probe(HEALTHY)
    assert life.core.record is None  # an engine that was started by hand has no run
    life = starting()
    life.sees(None)
    life.sees(running())
    assert life.core.record == SidecarRecord(
        "a", "g1", ready=False, began=1000.0, loaded_generation=None, load_seconds=None
    )
    life.waits(30)
    life.probe(HEALTHY)
    assert life.core.record == SidecarRecord(
        "a", "g1", ready=True, began=1000.0, loaded_generation="g1", load_seconds=30.0
    )
    # What it was told it tells on.
    assert adopting(life.core.record).core.record == life.core.record
    life.sees(exited(1))
    assert life.core.record is None


@story
def what_the_last_probe_found_shows_in_every_state() -> None:
    # Without it an engine on another port, or behind somebody else's server, just never gets ready.
    life = loading()
    assert life.it().last_probe is None
    life.probe(Outcome.FOREIGN)
    assert life.state == "loading"
    assert life.it().last_probe == ProbeResult(life.it().epoch, life.now, Outcome.FOREIGN, "how")
    life.probe(REFUSED)
    assert life.it().last_probe == ProbeResult(life.it().epoch, life.now, REFUSED, "how")
    life.probe(HEALTHY, epoch=life.it().epoch - 1)
    assert life.it().last_probe == ProbeResult(life.it().epoch, life.now, REFUSED, "how")
    life.sees(running("b"))
    assert life.it().last_probe is None


@story
def refused_is_not_busy() -> None:
    # An engine that was told to end behind our back finishes its streams, and takes no new request.
    life = ready()
    assert life.probe(REFUSED, busy=True) == ["PROBE_SOON"]
    assert life.probe(REFUSED, busy=True) == ["probes_failed: ready -> unhealthy"]
    assert life.says == ("unhealthy", "probe_refused")


@story
def a_late_answer_about_another_run_is_dropped() -> None:
    life = ready()
    old = life.it().epoch
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: ready -> loading", "PROBE_SOON"]
    assert life.probe(HEALTHY, epoch=old) == []
    assert life.state == "loading"
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    for _ in range(3):
        assert life.probe(REFUSED, epoch=old) == []
    assert life.state == "ready"


@story
def a_probe_under_way_when_the_engine_died_does_not_raise_it() -> None:
    life = ready()
    old = life.it().epoch
    assert life.sees(exited(1)) == ["EMPTY_POOL", "crashed: ready -> failed"]
    assert life.probe(HEALTHY, epoch=old) == []
    assert life.state == "failed"


@story
def failures_of_one_run_do_not_count_against_the_next() -> None:
    life = ready()
    life.probe(TIMEOUT)
    life.probe(REFUSED)
    life.sees(running("b"))
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.probe(REFUSED) == ["PROBE_SOON"]
    assert life.state == "ready"


@story
def unhealthy_for_too_long_is_failed_and_still_can_come_back() -> None:
    life = unhealthy()
    assert life.waits(299.9) == []
    assert life.waits(0.1) == ["deadline: unhealthy -> failed"]
    assert life.says == ("failed", "unresponsive")
    assert life.it().last_failure == Failure(Reason.UNRESPONSIVE, "did not recover in 300 s", life.now)
    assert life.door == "closed"
    assert life.probe(HEALTHY) == ["healthy: failed -> ready"]
    assert life.door == "open"


@story
def the_log_does_not_excuse_an_unhealthy_engine() -> None:
    life = unhealthy()
    assert life.waits(200) == []
    assert life.log_grows() == []
    assert life.waits(100) == ["deadline: unhealthy -> failed"]


@story
def an_unhealthy_engine_is_replaced() -> None:
    life = unhealthy()
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: unhealthy -> loading", "PROBE_SOON"]
    life = unhealthy()
    assert life.sees(exited(1)) == ["EMPTY_POOL", "crashed: unhealthy -> failed"]


# -- ends --------------------------------------------------------------------------------------------------------------


@story
def crashes_have_names() -> None:
    for status, alive, reason, detail, code in (
        (exited(1), True, Reason.CRASHED, "the engine ended by itself, exit code 1", 1),
        (exited(0), True, Reason.EXITED, "the engine ended by itself, exit code 0", 0),
        (exited(128), True, Reason.CRASHED, "the engine ended by itself, exit code 128", 128),
        (exited(129), True, Reason.CRASHED, "the engine was ended by signal 1", 129),
        (exited(139), True, Reason.CRASHED, "the engine was ended by signal 11 (SIGSEGV)", 139),
        (exited(137), False, Reason.KILLED, "the engine was ended by signal 9 (SIGKILL)", 137),
        (
            running(),
            False,
            Reason.KILLED,
            "the engine container is gone without a word: killed, most often for lack of memory",
            None,
        ),
    ):
        life = ready()
        life.waits(7)
        assert life.sees(status, alive=alive) == ["EMPTY_POOL", "crashed: ready -> failed"]
        assert life.says == ("failed", reason)
        assert life.it().detail == detail
        assert life.it().last_failure == Failure(reason, detail, life.now, code)
        assert life.door == "closed"
        # Seen again, and written down after all.
        assert life.sees(status, alive=False) == []
        assert life.sees(exited(1), alive=False) == []
        assert life.sees(stop_requested()) == []


@story
def what_the_engine_said_last_is_the_reason() -> None:
    life = loading()
    why = Diagnosis(Reason.PORT_IN_USE, "the engine's port is taken")
    assert life.sees(exited(1), why=why) == ["EMPTY_POOL", "crashed: loading -> failed"]
    assert life.says == ("failed", "port_in_use")
    assert life.it().last_failure == Failure(Reason.PORT_IN_USE, "the engine's port is taken", life.now, 1)


@story
def nobody_can_know_whether_a_script_without_a_fifo_lives() -> None:
    life = loading()
    assert life.sees(running(), alive=None) == []
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.sees(None, alive=False) == []
    assert life.state == "ready"


@story
def a_stop_that_was_asked_for_is_no_failure() -> None:
    life = ready()
    assert life.sees(stop_requested()) == ["stop_requested: ready -> stopping"]
    assert life.says == ("stopping", "stop_requested")
    assert life.sees(stop_requested()) == []
    # It answers while it drains; it is not ready for all that.
    assert life.probe(HEALTHY) == []
    for _ in range(4):
        assert life.probe(REFUSED) == []
    assert life.waits(10_000) == []
    assert life.sees(exited(143, asked=True)) == ["EMPTY_POOL", "ended: stopping -> starting"]
    assert life.says == ("starting", "engine_not_started")
    assert life.it().last_failure is None
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: starting -> loading", "PROBE_SOON"]
    assert (life.it().restarts, life.it().ready_in_run) == (1, False)


@story
def a_stop_in_every_state_that_has_a_run() -> None:
    life = loading()
    assert life.sees(stop_requested()) == ["stop_requested: loading -> stopping"]
    assert life.door == "closed"
    assert life.probe(HEALTHY) == []
    assert not life.it().ready_in_run
    life = unhealthy()
    assert life.sees(stop_requested()) == ["stop_requested: unhealthy -> stopping"]
    life = never_loaded()
    assert life.sees(stop_requested()) == ["stop_requested: failed -> stopping"]
    assert life.sees(exited(0, asked=True)) == ["EMPTY_POOL", "ended: stopping -> starting"]


@story
def killed_while_stopping_as_asked() -> None:
    life = stopping()
    assert life.sees(stop_requested(), alive=False) == ["EMPTY_POOL", "ended: stopping -> starting"]


@story
def a_file_that_takes_its_stop_back() -> None:
    """The other container is not trusted to be consistent."""
    life = stopping()
    assert life.sees(exited(1, asked=False)) == ["EMPTY_POOL", "crashed: stopping -> failed"]
    life = never_loaded()
    since = life.it().since
    life.waits(5)
    assert life.sees(exited(1)) == ["EMPTY_POOL"]
    assert (life.it().state, life.it().since) == (State.FAILED, since)
    assert life.last_failure() == "crashed"
    # What it ended of, and not that it was slow before, is what a refused client and /health are told.
    assert life.says == ("failed", "crashed")
    assert life.it().detail == "the engine ended by itself, exit code 1"


@story
def phases_come_and_go_between_two_looks() -> None:
    life = ready()
    assert life.sees(exited(0, asked=True)) == [
        "stop_requested: ready -> stopping",
        "EMPTY_POOL",
        "ended: stopping -> starting",
    ]
    assert life.sees(exited(1, "b")) == [
        "EMPTY_POOL",
        "engine_started: starting -> loading",
        "PROBE_SOON",
        "EMPTY_POOL",
        "crashed: loading -> failed",
    ]
    assert life.sees(exited(0, "d", asked=True)) == [
        "EMPTY_POOL",
        "engine_started: failed -> loading",
        "PROBE_SOON",
        "stop_requested: loading -> stopping",
        "EMPTY_POOL",
        "ended: stopping -> starting",
    ]
    assert life.it().restarts == 2


@story
def a_restart_so_fast_that_nobody_saw_the_end() -> None:
    """The stop closed the door; the next run must find it open."""
    life = serving()
    assert life.sees(stop_requested()) == ["stop_requested: ready -> stopping"]
    assert life.waits(6) == []
    assert life.door == "closed"
    assert life.serves(0) == ["RELEASE_HOLD"]
    assert life.sees(running("b")) == ["EMPTY_POOL", "engine_started: stopping -> loading", "PROBE_SOON"]
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    assert life.door == "open"
    # And its own stop has a quiet period of its own.
    life.takes_hold()
    assert life.sees(stop_requested("b")) == ["stop_requested: ready -> stopping"]
    assert life.door == "open"
    assert life.due_in() == 5


@story
def an_engine_by_hand_after_a_crash() -> None:
    """A 200 from the right server beats a file that says otherwise."""
    life = crashed()
    assert life.probe(HEALTHY) == ["healthy: failed -> ready"]
    assert life.last_failure()


# -- the hold ----------------------------------------------------------------------------------------------------------


@story
def a_stop_loses_no_stream() -> None:
    life = serving(2)
    assert life.sees(stop_requested()) == ["stop_requested: ready -> stopping"]
    assert life.it().healthy is False
    assert life.door == "open"  # endpoints lag behind
    assert life.due_in() == 5
    assert life.waits(4.9) == []
    assert life.serves(3) == []
    assert life.door == "open"
    assert life.waits(0.1) == []
    assert life.door == "closed"
    assert life.due_in() == 60
    assert life.serves(1) == []
    assert life.waits(20) == []
    assert life.serves(0) == ["RELEASE_HOLD"]
    assert life.due_in() is None
    assert life.waits(100) == []
    assert life.sees(exited(0, asked=True)) == ["EMPTY_POOL", "ended: stopping -> starting"]
    assert life.it().accepting


@story
def streams_that_end_early_do_not_shorten_the_quiet_period() -> None:
    life = serving(1)
    life.sees(stop_requested())
    assert life.serves(0) == []
    assert life.serves(1) == []  # one more from a client that does not know yet
    assert life.serves(0) == []
    assert life.waits(5) == ["RELEASE_HOLD"]


@story
def streams_that_never_end_are_waited_for_only_so_long() -> None:
    life = serving(1)
    life.sees(stop_requested())
    assert life.waits(5) == []
    assert life.waits(59.9) == []
    assert life.waits(0.1) == ["RELEASE_HOLD"]
    assert life.serves(0) == []
    assert life.state == "stopping"


@story
def the_engine_ends_in_its_quiet_period() -> None:
    life = serving(1)
    life.sees(stop_requested())
    assert life.waits(2) == []
    assert life.sees(exited(0, asked=True)) == ["EMPTY_POOL", "ended: stopping -> starting"]
    assert life.waits(100) == []  # nothing left to release
    assert life.it().accepting


@story
def where_no_request_came_the_stop_is_not_delayed() -> None:
    life = stopping()
    assert life.door == "closed"
    assert life.due_in() is None
    assert life.waits(100) == []


@story
def a_hold_that_was_taken_as_the_stop_came() -> None:
    life = stopping()
    assert life.takes_hold() == ["RELEASE_HOLD"]
    life = stopping()
    life.serves(1)
    assert life.takes_hold() == []
    assert life.due_in() == 60
    assert life.serves(0) == ["RELEASE_HOLD"]


@story
def a_hold_for_a_run_that_is_over_protects_nothing() -> None:
    life = ready()
    old = life.it().epoch
    life.sees(running("b"))
    life.probe(HEALTHY)
    assert life.takes_hold(epoch=old) == []
    assert life.sees(stop_requested("b")) == ["stop_requested: ready -> stopping"]
    assert life.door == "closed"
    # And one of a run that was replaced is not carried over.
    life = serving(0)
    life.sees(running("b"))
    life.probe(HEALTHY)
    assert life.sees(stop_requested("b")) == ["stop_requested: ready -> stopping"]
    assert life.door == "closed"


@story
def requests_without_a_hold_are_not_waited_for_by_the_engine() -> None:
    """The volume was full: there is nothing to release, and nothing that spins."""
    life = ready()
    life.serves(1)
    life.sees(stop_requested())
    assert life.waits(100) == []
    assert life.serves(0) == []


# -- our own end -------------------------------------------------------------------------------------------------------


@story
def asked_to_leave_while_idle_we_leave_at_once() -> None:
    for state, make in IN_STATE.items():
        if state is not State.DRAINING:
            life = make()
            assert life.is_asked_to_leave() == [f"drain: {state} -> draining", "LEAVE"]
            assert life.says == ("draining", "shutting_down")
            assert (life.door, life.it().healthy, life.due_in()) == ("closed", False, None)
            assert life.is_asked_to_leave() == []
            assert life.waits(1000) == []


@story
def asked_to_leave_while_serving() -> None:
    life = serving(2)
    assert life.is_asked_to_leave() == ["drain: ready -> draining"]
    assert (life.door, life.it().healthy) == ("open", False)
    assert life.is_asked_to_leave() == []
    assert life.waits(5) == []
    assert life.door == "closed"
    assert life.due_in() == 60
    assert life.serves(1) == []
    assert life.serves(0) == ["RELEASE_HOLD", "LEAVE"]
    assert life.due_in() is None
    assert life.waits(1000) == []


@story
def asked_to_leave_with_streams_that_never_end() -> None:
    life = serving(2)
    assert life.is_asked_to_leave() == ["drain: ready -> draining"]
    assert life.waits(64.9) == []
    assert life.waits(0.1) == ["RELEASE_HOLD", "LEAVE"]


@story
def both_containers_are_asked_to_stop_in_either_order() -> None:
    life = serving(1)
    assert life.sees(stop_requested()) == ["stop_requested: ready -> stopping"]
    assert life.waits(3) == []
    assert life.is_asked_to_leave() == ["drain: stopping -> draining"]
    assert life.door == "open"
    assert life.waits(2) == []  # one quiet period, not two
    assert life.door == "closed"
    assert life.serves(0) == ["RELEASE_HOLD", "LEAVE"]
    life = serving(1)
    assert life.is_asked_to_leave() == ["drain: ready -> draining"]
    assert life.waits(3) == []
    assert life.sees(stop_requested()) == []
    assert life.waits(2) == []
    assert life.serves(0) == ["RELEASE_HOLD", "LEAVE"]


@story
def the_engine_dies_while_we_drain() -> None:
    life = draining()
    assert life.sees(exited(137)) == ["EMPTY_POOL"]
    assert life.last_failure() == "killed"
    assert life.door == "open"  # what comes is told by the forwarder that nobody listens
    assert life.waits(5) == []
    assert life.door == "closed"
    assert life.serves(0) == ["LEAVE"]


@story
def nothing_brings_us_back() -> None:
    life = draining()
    assert life.publishes() == []
    assert life.probe(HEALTHY) == []
    for _ in range(4):
        assert life.probe(TIMEOUT) == []
    assert life.sees(stop_requested()) == []
    assert life.sees(exited(0, asked=True)) == ["EMPTY_POOL"]
    assert life.sees(running("b")) == ["EMPTY_POOL", "PROBE_SOON"]
    assert life.probe(HEALTHY) == []
    life.takes_hold()
    assert life.sees(exited(1, "b")) == ["EMPTY_POOL"]
    assert life.says == ("draining", "shutting_down")
    assert life.waits(5) == []
    assert life.waits(60) == ["LEAVE"]


@story
def a_hold_taken_while_we_drain_is_released() -> None:
    life = ready()
    life.serves(1)
    assert life.is_asked_to_leave() == ["drain: ready -> draining"]
    life.takes_hold()
    assert life.serves(0) == ["RELEASE_HOLD", "LEAVE"]


# -- nothing to tell ---------------------------------------------------------------------------------------------------


@story
def probes_and_time_change_nothing_where_there_is_nothing_to_change() -> None:
    for make in (waiting, starting, loading, unhealthy, stopping, never_loaded, crashed, draining):
        life = make()
        life.serves(1)
        life.takes_hold()
        before = life.it()
        for outcome in (REFUSED, TIMEOUT, UNHEALTHY, Outcome.BROKEN, Outcome.FOREIGN, REFUSED):
            assert life.probe(outcome) == []
        assert replace(life.it(), last_probe=None) == replace(before, last_probe=None)
        assert life.waits(4) == []
        assert life.it().state is before.state
    for make in (ready, stopping, draining):
        life = make()
        life.serves(1)
        life.takes_hold()
        before = life.it()
        for _ in range(3):
            assert life.probe(HEALTHY) == []
        assert replace(life.it(), last_probe=None) == replace(before, last_probe=None)
    for make in (waiting, starting, ready, never_loaded, crashed):
        life = make()
        life.takes_hold()
        before = life.it()
        assert life.waits(100_000) == []
        assert life.it() == before


@pytest.mark.parametrize("tell", STORIES, ids=lambda tell: tell.__name__)
def test_story(tell: Story) -> None:
    tell()


# Cells no fact leads to today: the table is total so that the next fact finds an answer.
UNREACHED: set[tuple[State, Event]] = {
    # Only an engine that is ready, or was before we came, is counted against.
    *((state, Event.PROBES_FAILED) for state in State if state not in (State.READY, State.LOADING)),
    # Deadlines exist in three states.
    *((state, Event.DEADLINE) for state in State if state not in (State.LOADING, State.UNHEALTHY, State.STOPPING)),
    # A run begins before anything else is known of it, which leads out of these.
    *((state, event) for state in (State.WAITING, State.STARTING) for event in (Event.STOP_REQUESTED, Event.CRASHED)),
    # That a stop was asked for is told before the end it led to.
    *((state, Event.ENDED) for state in State if state not in (State.STOPPING, State.DRAINING)),
}


def same_thing(event: Event, cell: State | Cell, other: State | Cell) -> bool:
    """Whether nobody could tell: a hold is forgotten with its run, before the event that says so."""
    ends = (Event.ENGINE_STARTED, Event.ENDED, Event.CRASHED)
    return event in ends and {cell, other} == {Cell.STAY, Cell.RELEASE_HOLD}


def with_cell(state: State, event: Event, cell: State | Cell) -> Any:
    return MappingProxyType({**TABLE, state: MappingProxyType({**TABLE[state], event: cell})})


def told(table: Any, by_use: list[Story]) -> bool:
    """Whether every story still holds with this table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "TABLE", table)
        for place, tell in enumerate(by_use):
            try:
                tell()
            except Exception:
                # The next change is often one of the same cell: ask who noticed this one first.
                by_use.insert(0, by_use.pop(place))
                return False
        return True


def _name(target: State | Cell) -> str:
    return target.name


def test_the_stories_notice_every_change_of_the_table() -> None:
    stories = list(STORIES)
    assert told(TABLE, stories), "the control: the stories hold with the table as it is"
    unnoticed = [
        f"{event}: {state} -> {_name(other)} instead of {_name(cell)}"
        for state, row in TABLE.items()
        for event, cell in row.items()
        for other in (*State, *Cell)
        if other is not cell and (state, event) not in UNREACHED and not same_thing(event, cell, other)
        if told(with_cell(state, event, other), stories)
    ]
    assert unnoticed == []


# -- any life ----------------------------------------------------------------------------------------------------------

RUNS = st.sampled_from("abd")
CODES = st.sampled_from([0, 1, 137, 143])
STATUSES = st.none() | st.one_of(
    RUNS.map(running),
    RUNS.map(stop_requested),
    st.builds(exited, CODES, RUNS, asked=st.booleans()),
)
EPOCHS_AGO = st.sampled_from([0, 0, 0, 1])
FACTS = st.one_of(
    st.tuples(st.just("publish")),
    st.tuples(st.just("sample"), STATUSES, st.sampled_from([True, True, None, False])),
    st.tuples(st.just("probe"), st.sampled_from(Outcome), EPOCHS_AGO, st.booleans()),
    st.tuples(st.just("hold"), EPOCHS_AGO),
    st.tuples(st.just("log"), EPOCHS_AGO),
    st.tuples(st.just("serve"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 5.0, 60.0, 300.0])),
    st.tuples(st.just("drain")),
)
RULE_SETS = st.builds(
    Rules,
    probe_failures=st.integers(1, 3),
    probe_successes=st.integers(1, 3),
    startup_timeout=st.sampled_from([0.1, 300.0]),
    quiet=st.sampled_from([0.0, 5.0]),
    drain=st.sampled_from([0.0, 60.0]),
    engine_kill=st.just(120.0),
    load_kill=st.sampled_from([None, 0.0]),
)


def tell(life: Life, fact: tuple[Any, ...]) -> list[str]:
    match fact:
        case ("publish",):
            return life.publishes()
        case ("sample", status, alive):
            return life.sees(status, alive=alive)
        case ("probe", outcome, ago, busy):
            return life.probe(outcome, epoch=life.it().epoch - ago, busy=busy)
        case ("hold", ago):
            return life.takes_hold(epoch=life.it().epoch - ago)
        case ("log", ago):
            return life.log_grows(Progress("weights", 0.5), epoch=life.it().epoch - ago)
        case ("serve", in_flight):
            return life.serves(in_flight)
        case ("wait", seconds):
            return life.waits(seconds)
        case _:
            return life.is_asked_to_leave()


def check(life: Life, before: Snapshot, news: list[str]) -> None:
    """What is true of every snapshot, and of every step from one to the next."""
    it = life.it()
    assert it.since <= life.now
    assert it.epoch >= before.epoch
    assert it.restarts >= before.restarts
    if not any(": " in line for line in news):
        assert (it.state, it.since) == (before.state, before.since)
    assert it.accepting or it.state in (State.STOPPING, State.DRAINING)
    assert it.healthy == (it.state is State.READY)
    assert (it.lost_since is not None) == (it.state in (State.UNHEALTHY, State.FAILED))
    assert it.progress is None or it.state in (State.LOADING, State.FAILED, State.STOPPING, State.DRAINING)
    assert it.state is not State.FAILED or it.last_failure is not None
    assert 1 <= it.retry_after(life.now) <= 60
    if before.state is State.DRAINING:
        assert it.state is State.DRAINING
    if it.state is State.STOPPING or it.state is State.DRAINING:
        assert RULES.engine_alive(it, life.now)


@given(RULE_SETS, st.lists(FACTS, max_size=25), st.data())
@settings(max_examples=examples(200))
def test_any_sequence_of_facts(rules: Rules, facts: list[tuple[Any, ...]], data: st.DataObject) -> None:
    life = Life(rules)
    held = left = False
    for fact in facts:
        before = life.it()
        news = tell(life, fact)
        check(life, before, news)
        if fact[0] == "hold" and fact[1] == 0:
            held = True
        if "RELEASE_HOLD" in news:
            assert held
            held = False
        if life.it().epoch != before.epoch:
            held = False
        if left:
            assert "LEAVE" not in news
        left = left or "LEAVE" in news
        if fact[0] == "sample" and fact[1] is not None and (fact[1].phase is Phase.EXITED or fact[2] is False):
            assert life.it().state is not State.READY or life.it().epoch == before.epoch
    if life.it().state is State.DRAINING:
        return
    # Whatever happened: the engine runs, answers, and is ready in the end; or it stopped, and is not.
    life.sees(running("last"))
    for _ in range(rules.probe_successes):
        life.probe(HEALTHY)
    assert life.state == "ready"
    assert (life.door, life.engine_alive()) == ("open", True)
    life.takes_hold()
    asked = data.draw(st.booleans())
    epoch = life.it().epoch
    life.sees(stop_requested("last") if asked else exited(1, "last"))
    for _ in range(5):
        life.probe(HEALTHY, epoch=epoch)
        assert life.state != "ready"
    life.sees(exited(0, "last", asked=asked))
    assert life.it().state is (State.STARTING if asked else State.FAILED)


@given(RULE_SETS, st.lists(FACTS, max_size=20), st.integers(0, 2))
@settings(max_examples=examples(100))
def test_whatever_happened_we_leave_in_time(rules: Rules, facts: list[tuple[Any, ...]], in_flight: int) -> None:
    life = Life(rules)
    news: list[str] = []
    for fact in [*facts, ("serve", in_flight), ("drain",), ("wait", rules.quiet), ("wait", rules.drain)]:
        news += tell(life, fact)
    assert news.count("LEAVE") == 1
    assert life.due_in() is None
    assert tell(life, ("wait", 1000.0)) == []


@given(RULE_SETS, st.lists(FACTS, max_size=25))
@settings(max_examples=examples(100))
def test_no_fact_reaches_the_cells_said_to_be_out_of_reach(rules: Rules, facts: list[tuple[Any, ...]]) -> None:
    life = Life(rules)
    for fact in facts:
        for line in tell(life, fact):
            if ": " in line:
                event, _, states = line.partition(": ")
                assert (State(states.split(" -> ")[0]), Event(event)) not in UNREACHED


def test_a_look_at_the_configuration_file_moves_nothing() -> None:
    life = ready()
    life.core.config_file_seen(changed=True)
    assert life.it().config_file_changed
    assert life.it().state is State.READY
