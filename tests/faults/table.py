"""`python -m tests.faults.table`: runs the catalogue and prints, for each fault, how it went on each event loop.

What follows is given to pytest: `-m ""` also runs what takes seconds, `-k a11` one fault. *process* is what needs no
loop, or brings a process of its own and does not say on which.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COLUMNS = ("asyncio", "uvloop", "process")


def faults_of(test: str) -> list[str]:
    """Return the numbers in a test's name: `test_a1_b23_what` tells of A1 and B23."""
    return [number.upper() for number in re.findall(r"(?:^test|(?<=\d))_([a-i]\d{1,3})(?=_)", test)]


def column_of(test: str) -> str:
    parameters = re.split(r"[-\]]", test.partition("[")[2])
    return next((loop for loop in COLUMNS[:2] if loop in parameters), "process")


class Table:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self._ended: dict[tuple[str, str], Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            test = report.nodeid.partition("::")[2]
            for fault in faults_of(test.partition("[")[0]):
                self._ended.setdefault((fault, column_of(test)), Counter())[report.outcome] += 1

    def cell(self, fault: str, column: str) -> str:
        ended = self._ended.get((fault, column), Counter())
        words = {"passed": "pass", "failed": "FAIL", "skipped": "skip"}
        return " ".join(f"{words[outcome]} {ended[outcome]}" for outcome in words if ended[outcome]) or "-"

    def lines(self) -> list[str]:
        rows = re.findall(r"^\| ([A-I]\d+) \| ([^|]*) \|", (HERE / "README.md").read_text("utf-8"), re.MULTILINE)
        head = [f"{'':5}" + "".join(f"{column:<10}" for column in COLUMNS)]
        return head + [
            f"{fault:<5}" + "".join(f"{self.cell(fault, column):<10}" for column in COLUMNS) + what
            for fault, what in rows
        ]


def main(arguments: list[str]) -> int:
    table, told = Table(), io.StringIO()
    with contextlib.redirect_stdout(told):
        code = pytest.main([str(HERE), "-q", "-p", "no:cacheprovider", *arguments], plugins=[table])
    print("\n".join(table.lines()))
    print(told.getvalue().rstrip().rpartition("\n")[2] if not code else told.getvalue())
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
