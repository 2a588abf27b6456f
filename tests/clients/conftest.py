"""Client programs, each started once: importing one takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.clients.program import Kind, Program

StartProgram = Callable[[Kind], Program]


@pytest.fixture(scope="session")
def client_program() -> Iterator[StartProgram]:
    """Return a running program of a client."""
    programs: dict[Kind, Program] = {}

    def start(kind: Kind) -> Program:
        if kind not in programs:
            programs[kind] = Program(kind)
        return programs[kind]

    yield start
    for program in programs.values():
        program.close()
