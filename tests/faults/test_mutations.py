"""The guards of `mutations.py`, one test each; `make mutations` prints the table."""

from __future__ import annotations

import pytest

from tests.faults.mutations import MUTATIONS, Mutation, failing_with_all_guards, fails_without_its_guard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_with_all_guards_every_named_test_passes() -> None:
    assert not failing_with_all_guards()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_without_its_guard_the_faults_test_fails(mutation: Mutation) -> None:
    assert fails_without_its_guard(mutation)
