"""Which connection goes when there are too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.server.connection_cap import RESERVE, ConnectionCap, cap_for, most_for, waiting_for


def full(*idle: str, busy: int = 0) -> ConnectionCap[str]:
    cap = ConnectionCap[str](len(idle) + busy)
    for name in (*idle, *(f"busy {number}" for number in range(busy))):
        assert cap.admit(name) is None
    for number in range(busy):
        cap.busy(f"busy {number}")
    return cap


def test_below_the_cap_nobody_goes() -> None:
    cap = full("a", "b")
    assert len(cap) == 2


def test_at_the_cap_the_one_idle_longest_goes() -> None:
    cap = full("a", "b")
    assert cap.admit("c") == "a"
    assert (len(cap), cap.evicted) == (2, 1)
    assert cap.admit("d") == "b"


def test_a_request_and_its_answer_make_a_connection_young_again() -> None:
    cap = full("a", "b")
    cap.busy("a")
    assert not cap.is_idle("a")
    cap.idle("a")
    assert cap.admit("c") == "b"


def test_nobody_who_is_being_answered_goes() -> None:
    cap = full("a", busy=2)
    assert cap.admit("c") == "a"
    assert cap.admit("d") == "c"


def test_a_lost_connection_makes_room() -> None:
    cap = full("a", "b")
    cap.lost("a")
    cap.lost("a")
    assert cap.admit("c") is None


def test_when_all_are_busy_there_is_a_reserve_for_probes() -> None:
    cap = full(busy=2)
    for number in range(RESERVE):
        assert cap.admit(f"probe {number}") is None
        assert cap.probes_only(f"probe {number}")
    assert not cap.probes_only("busy 0")
    assert len(cap) == 2 + RESERVE


def test_the_reserve_is_never_all_taken_by_the_silent() -> None:
    cap = full(busy=1)
    for number in range(RESERVE):
        cap.admit(f"silent {number}")
    assert cap.admit("kubelet") == "silent 0"
    assert cap.probes_only("kubelet")
    assert cap.refused == 1


def test_one_of_the_reserve_stays_there() -> None:
    cap = full(busy=1)
    cap.admit("probe")
    cap.busy("probe")
    cap.idle("probe")
    assert cap.probes_only("probe")
    assert not cap.is_idle("probe")


def test_what_is_told_of_a_connection_that_is_gone_brings_it_not_back() -> None:
    cap = full("a")
    cap.lost("a")
    cap.idle("a")
    assert len(cap) == 0
    assert not cap.is_idle("a")


@pytest.mark.parametrize(
    ("descriptors", "most"),
    [(64, 8), (1024, 472), (20_000, 9960), (1_048_576, 20_000)],
)
def test_the_cap_follows_from_the_descriptors(descriptors: int, most: int) -> None:
    assert cap_for(descriptors) == most


@pytest.mark.parametrize(("descriptors", "most"), [(64, 8), (1024, 944), (20_000, 19_920)])
def test_whoever_sets_a_cap_gets_no_more_than_can_be_let_in(descriptors: int, most: int) -> None:
    assert most_for(descriptors) == most


@pytest.mark.parametrize(
    ("descriptors", "most", "waiting"),
    [(64, 8, 16), (1024, 944, 16), (1024, 472, 118), (20_000, 11_000, 2230), (1_048_576, 20_000, 4096)],
)
def test_what_the_cap_leaves_is_shared_with_those_not_served_yet(descriptors: int, most: int, waiting: int) -> None:
    assert waiting_for(descriptors, most) == waiting


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from(["admit", "busy", "idle", "lost"]), st.integers(0, 40))))
def test_whatever_happens_there_are_never_more_than_cap_and_reserve(most: int, steps: list[tuple[str, int]]) -> None:
    cap = ConnectionCap[int](most)
    open_: set[int] = set()
    for what, who in steps:
        if what == "admit":
            if who not in open_:
                open_.add(who)
                closed = cap.admit(who)
                if closed is not None:
                    open_.remove(closed)
        elif who in open_:
            getattr(cap, what)(who)
            if what == "lost":
                open_.remove(who)
        assert len(cap) == len(open_) <= most + RESERVE
