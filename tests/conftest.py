"""Fixtures every test shares: both event loops, and no task left behind."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Mapping

import hypothesis
import pytest
import uvloop

from tests.fake_engine import fake_engine

# Fixtures made elsewhere.
__all__ = ["fake_engine"]

# pytest-asyncio asks for "the current loop" once; without this line Python 3.11 makes one that nobody closes,
# and the collector blames a random later test for it.
asyncio.set_event_loop(None)

# How long one example takes says something about the machine, not about the code.
# In CI the same examples each time: what is found by chance is for whoever works on it, and for soak runs.
hypothesis.settings.register_profile("wings", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("wings")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test runs on the stock loop and on uvloop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask every asynchronous test, and no other, for the leftover-task check."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(inspect.unwrap(item.obj)):
            item.fixturenames.insert(0, "no_leftover_tasks")


@pytest.fixture
async def no_leftover_tasks() -> AsyncIterator[None]:
    """A test that leaves a task running fails, with the task's name."""
    yield
    # A transport closes itself one loop pass after close(): give callbacks that are due their turn.
    for _ in range(3):
        await asyncio.sleep(0)
    left = [task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()} if not task.done()]
    assert not left, f"tasks left running: {left}"
