"""The catalogue is whole: a hundred numbers, each in the table and each with a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
GROUPS = {"a": (1, 21), "b": (22, 34), "c": (35, 40), "d": (41, 52), "e": (53, 64), "f": (65, 70), "g": (71, 77)} | {
    "h": (78, 86),
    "i": (87, 100),
}
NUMBERS = {f"{group}{number}" for group, (first, last) in GROUPS.items() for number in range(first, last + 1)}


def numbers_of_tests() -> set[str]:
    found = set()
    for file in HERE.glob("test_*.py"):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= set(re.findall(r"(?:^test|(?<=\d))_([a-i]\d{1,3})(?=_)", node.name))
    return found


def test_there_are_a_hundred() -> None:
    assert len(NUMBERS) == 100


def test_each_stands_in_the_table_once() -> None:
    rows = re.findall(r"^\| ([A-I]\d+) \|", (HERE / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(row.lower() for row in rows) == sorted(NUMBERS)


def test_each_has_a_test_of_its_number() -> None:
    assert numbers_of_tests() == NUMBERS
