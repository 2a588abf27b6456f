"""The README says what the code does."""

from __future__ import annotations

from tests.readme import README, with_generated_parts


def test_the_tables_and_the_diagram_are_those_of_the_code() -> None:
    text = README.read_text("utf-8")
    assert text == with_generated_parts(text), "run: python -m tests.readme"


def test_the_first_success_comes_within_the_first_screens() -> None:
    lines = README.read_text("utf-8").splitlines()
    assert any("make demo" in line for line in lines[:20])
    assert any("make test-all" in line for line in lines[:30])
