"""The fake engine for tests: what to import, the `fake_engine` fixture, and `python -m tests.fake_engine`.

In process::

    async def test_x(fake_engine: StartEngine) -> None:
        engine = await fake_engine(token_seconds=0.01, fault=Fault.RST)
        ...                                  # dial engine.port
        engine.settings.health = Health.HANG  # switches work at any time
        await engine.until(lambda: engine.running == 1)
        assert engine.requests[0].outcome is Outcome.LEFT

As a program: see `tests/fake/program.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest

from tests.fake.engine import FakeEngine
from tests.fake.program import main, write_shims
from tests.fake.settings import FakeSettings, Fault, Flavour, Foreign, Health, Metrics, Stop
from tests.fake.wire import Outcome, Peer, Request

__all__ = [
    "FakeEngine",
    "FakeSettings",
    "Fault",
    "Flavour",
    "Foreign",
    "Health",
    "Metrics",
    "Outcome",
    "Peer",
    "Request",
    "StartEngine",
    "Stop",
    "fake_engine",
    "write_shims",
]


class StartEngine(Protocol):
    """Start an engine; keywords are fields of FakeSettings. It is closed at the end of the test."""

    async def __call__(self, **settings: Any) -> FakeEngine: ...


@pytest.fixture
async def fake_engine() -> AsyncIterator[StartEngine]:
    """A factory of engines in this process."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> FakeEngine:
            return await stack.enter_async_context(FakeEngine(FakeSettings(**settings)))

        yield start


if __name__ == "__main__":
    main()
