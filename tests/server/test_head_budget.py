"""How much unfinished heads hold together, and which ones go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.server.head_budget import HeadBudget


def test_within_the_budget_nobody_goes() -> None:
    budget = HeadBudget[str](10)
    assert [budget.grow(name, 5) for name in "ab"] == [[], []]


def test_those_that_began_first_go_until_it_fits() -> None:
    budget = HeadBudget[str](10)
    for name, size in (("a", 2), ("b", 2), ("c", 2), ("a", 2)):
        assert budget.grow(name, size) == []
    assert budget.grow("c", 6) == ["a"]
    assert budget.grow("d", 2) == ["b"]
    assert budget.grow("b", 10) == ["c", "d"]


def test_what_has_ended_counts_no_more() -> None:
    budget = HeadBudget[str](10)
    budget.grow("a", 10)
    budget.done("a")
    budget.done("a")
    assert budget.grow("b", 10) == []


def test_one_that_is_larger_than_the_budget_goes_itself() -> None:
    budget = HeadBudget[str](10)
    assert budget.grow("a", 11) == ["a"]
    assert budget.grow("b", 10) == []


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30))))
def test_whatever_comes_together_they_never_hold_more(most: int, steps: list[tuple[int, int]]) -> None:
    """A size of 0 stands for a head's end."""
    budget, held = HeadBudget[int](most), dict[int, int]()
    for who, size in steps:
        if size:
            held[who] = held.get(who, 0) + size
            for gone in budget.grow(who, size):
                del held[gone]
        else:
            budget.done(who)
            held.pop(who, None)
        assert sum(held.values()) <= most
