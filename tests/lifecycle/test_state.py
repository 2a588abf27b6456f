"""What leads from one state to another, what each means outside, and what a snapshot says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lifecycle.life import (
    HEALTHY,
    REFUSED,
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
from wings_proxy.lifecycle.state import (
    MEANING,
    TABLE,
    Cell,
    Event,
    Progress,
    Snapshot,
    State,
)

# -- the table ---------------------------------------------------------------------------------------------------------

# From the design, by hand; a dot stays, `release` releases the hold. A load is never counted against: what is unhealthy
# of `loading` was ready before we came.
DESIGNED = """
           published  engine_started healthy probes_failed stalled   stop_requested ended    crashed deadline drain
waiting    starting   loading        ready   .             .         stopping       .        failed  .        draining
starting   .          loading        ready   .             .         stopping       .        failed  .        draining
loading    .          loading        ready   unhealthy     .         stopping       starting failed  failed   draining
ready      .          loading        .       unhealthy     unhealthy stopping       starting failed  .        draining
unhealthy  .          loading        ready   .             .         stopping       starting failed  failed   draining
stopping   .          loading        .       .             release   .              starting failed  release  draining
failed     .          loading        ready   .             .         stopping       starting .       .        draining
draining   .          .              .       .             .         .              .        .       .        .
"""


def written(target: State | Cell) -> str:
    return {Cell.STAY: ".", Cell.RELEASE_HOLD: "release"}[target] if isinstance(target, Cell) else target


def test_the_table_is_the_designed_one() -> None:
    _, head, *rows = DESIGNED.rstrip().split("\n")
    expected = {row.split()[0]: dict(zip(head.split(), row.split()[1:], strict=True)) for row in rows}
    assert {state: {event: written(cell) for event, cell in row.items()} for state, row in TABLE.items()} == expected


def test_the_table_is_total() -> None:
    assert list(TABLE) == list(State)
    assert all(list(row) == list(Event) for row in TABLE.values())


def test_every_state_can_be_reached_and_only_the_last_not_be_left() -> None:
    reached, todo = {State.WAITING}, [State.WAITING]
    while todo:
        for target in TABLE[todo.pop()].values():
            if isinstance(target, State) and target not in reached:
                reached.add(target)
                todo.append(target)
    assert reached == set(State)
    for state, row in TABLE.items():
        assert any(isinstance(target, State) and target is not state for target in row.values()) == (
            state is not State.DRAINING
        )


def test_what_each_state_means_outside() -> None:
    rows = {state: (meaning.health, meaning.healthy, meaning.forwards) for state, meaning in MEANING.items()}
    assert rows == {
        State.WAITING: ("starting", False, False),
        State.STARTING: ("starting", False, False),
        State.LOADING: ("starting", False, False),
        State.READY: ("healthy", True, True),
        State.UNHEALTHY: ("unhealthy", False, True),
        State.STOPPING: ("stopping", False, True),
        State.FAILED: ("failed", False, False),
        State.DRAINING: ("draining", False, True),
    }
    for state in State:
        assert Snapshot(state, 0.0, "", "").healthy == rows[state][1]
        assert Snapshot(state, 0.0, "", "").forwards == rows[state][2]
        assert not Snapshot(state, 0.0, "", "", accepting=False).forwards


# -- what a snapshot says ----------------------------------------------------------------------------------------------


def test_liveness_of_the_engine_runs_from_when_it_was_lost_until_it_is_back() -> None:
    life = unhealthy()
    assert life.engine_alive()
    life.waits(119)
    assert life.engine_alive()
    life.waits(1)
    assert not life.engine_alive()
    life.waits(180)
    assert life.state == "failed"
    assert not life.engine_alive()  # failing is no recovery
    life.probe(HEALTHY)
    assert life.engine_alive()


def test_liveness_of_a_crashed_engine() -> None:
    life = crashed()
    life.waits(119)
    assert life.engine_alive()
    life.waits(1)
    assert not life.engine_alive()
    life.sees(running("b"))
    assert life.engine_alive()


def test_an_engine_that_never_was_ready_is_left_alone_unless_asked_for() -> None:
    life = never_loaded()
    life.waits(100_000)
    assert life.engine_alive()
    assert not life.engine_alive(load_kill=600.0)
    life = never_loaded()
    life.waits(599)
    assert life.engine_alive(load_kill=600.0)
    life.waits(1)
    assert not life.engine_alive(load_kill=600.0)
    life = loading()
    life.waits(299)
    assert life.engine_alive(load_kill=0.0)


@pytest.mark.parametrize("make", [waiting, starting, loading, ready, stopping, draining])
def test_an_engine_that_is_not_lost_is_alive_however_long_it_takes(make: Callable[[], Life]) -> None:
    life = make()
    life.serves(0)
    life.now += 100_000
    assert life.engine_alive(engine_kill=0.0, load_kill=0.0)


def test_a_refused_client_is_told_when_to_come_again() -> None:
    def after(life: Life, seconds: float = 0) -> int:
        return life.it().retry_after(life.now + seconds)

    assert [after(make()) for make in (waiting, starting, loading)] == [5, 5, 5]
    assert [after(make()) for make in (crashed, never_loaded)] == [15, 15]
    assert [after(make()) for make in (stopping, draining)] == [1, 1]
    assert [after(make()) for make in (ready, unhealthy)] == [5, 5]
    life = loading()
    for ratio, seconds, expected in ((0.5, 30, 30), (0.9, 90, 10), (0.25, 10, 30), (0.01, 10, 60), (1.0, 50, 5)):
        life.log_grows(Progress("weights", ratio))
        assert after(life, seconds) == expected
    life.log_grows(Progress("weights", 0.0))
    assert after(life, 10) == 5
    life.log_grows(Progress("compile"))
    assert after(life, 10) == 5


def test_how_long_the_last_start_took_tells_when_the_next_is_ready() -> None:
    life = starting()
    life.sees(None)  # the volume is new: the start is not missed
    life.sees(running())
    assert life.it().eta(life.now) is None
    life.waits(90)
    life.probe(HEALTHY)
    assert life.it().eta(life.now) is None
    life.sees(running("b"))
    assert life.it().eta(life.now) == 90
    assert life.it().retry_after(life.now) == 60
    life.log_grows(Progress("weights", 0.99))
    life.waits(80)
    assert (life.it().eta(life.now), life.it().retry_after(life.now)) == (10, 10)
    life.waits(20)
    # It takes longer than before: nobody knows how long.
    assert life.it().eta(life.now) is None
    life.sees(running("c", generation="g2"))
    assert life.it().eta(life.now) is None
    life.sees(running("d", generation="g1"))
    assert life.it().eta(life.now) == 90


def test_the_rest_of_a_load_that_began_before_us_tells_nothing_of_the_next() -> None:
    life = Life()
    life.publishes()
    life.sees(running("a"))
    life.waits(5)
    life.probe(HEALTHY)
    assert life.state == "ready"
    life.sees(exited(1))
    life.sees(running("b"))
    assert life.it().eta(life.now) is None
    life.waits(60)
    life.probe(HEALTHY)
    life.sees(running("c"))
    assert life.it().eta(life.now) == 60


def test_drift_is_another_script_than_the_published_one_running() -> None:
    life = Life()
    life.sees(running(generation="old"))
    assert not life.it().drifted  # nothing published yet
    life.publishes("new")
    assert life.it().drifted
    life.sees(exited(0, asked=True, generation="old"))
    assert not life.it().drifted  # nothing runs: the next start takes ours
    life.sees(running("b", generation="new"))
    assert not life.it().drifted
    assert (life.it().generation, life.it().published_generation) == ("new", "new")


def test_a_history_of_another_script_is_no_drift() -> None:
    life = Life()
    life.sees(exited(0, asked=True, generation="old"))
    life.publishes("new")
    assert not life.it().drifted


def test_a_configuration_file_that_changed_is_drift_too() -> None:
    life = ready()
    life.core.config_file_seen(changed=True)
    assert (life.it().drifted, life.it().script_drifted) == (True, False)
    life.core.config_file_seen(changed=False)
    assert not life.it().drifted


def test_only_a_run_that_is_on_looks_for_the_hold() -> None:
    life = Life()
    assert life.it().holdable_run is None
    life.sees(exited(0, asked=True))
    assert life.it().holdable_run is None
    life.sees(running("b"))
    assert life.it().holdable_run == "b"
    life.sees(running("b"), alive=False)
    assert life.it().holdable_run is None


def test_the_epoch_grows_with_every_start_and_end() -> None:
    life = Life()
    epochs = [life.it().epoch]
    for status in (running(), stop_requested(), exited(0, asked=True), running("b"), running("d")):
        life.sees(status)
        epochs.append(life.it().epoch)
    assert epochs == [0, 1, 1, 2, 3, 4]


def test_who_served_and_is_not_known_to_have_ended_may_have_pages() -> None:
    assert not loading().it().may_listen
    life = serving()
    assert life.it().may_listen
    life.probe(REFUSED)
    life.probe(REFUSED)
    life.waits(300)
    assert (life.state, life.it().may_listen) == ("failed", True)
    assert not crashed().it().may_listen
    # Somebody started one by hand meanwhile.
    life = crashed()
    life.probe(HEALTHY)
    assert (life.state, life.it().may_listen) == ("ready", True)
