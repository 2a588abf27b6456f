"""Fixtures every test shares: both event loops, and no task left behind."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import hypothesis
import pytest
import uvloop

from tests.examples import BY_CHANCE, examples
from tests.fake_engine import fake_engine
from tests.ports import free_port

# Fixtures made elsewhere.
__all__ = ["fake_engine"]

# pytest-asyncio asks for "the current loop" once; without this line Python 3.11 makes one that nobody closes,
# and the collector blames a random later test for it.
asyncio.set_event_loop(None)

# How long one example takes, or making it, says something about the machine, not about the code.
hypothesis.settings.register_profile(
    "wings",
    deadline=None,
    derandomize=not BY_CHANCE,
    max_examples=examples(),
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("wings")


HANGS_ON_SECONDS = 15.0


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Iterator[None]:
    """A test that hangs is ended at its time-out, and what hangs at its end in turn: fixtures wait for what hung."""
    yield
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, HANGS_ON_SECONDS)


class UvloopThatEnds(uvloop.Loop):
    """uvloop, left by the error of a signal's handler: its own takes the time-out for a callback's, and goes on."""

    _outcome: BaseException | None = None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), pytest.fail.Exception):
            self._outcome = context["exception"]
            self.stop()
        else:
            super().call_exception_handler(context)

    def run_until_complete(self, future: Any) -> Any:
        try:
            return super().run_until_complete(future)
        except RuntimeError:
            outcome, self._outcome = self._outcome, None
            if outcome is None:
                raise
            raise outcome from None


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test runs on the stock loop and on uvloop."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": UvloopThatEnds}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask every asynchronous test, and no other, for the leftover-task check."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(inspect.unwrap(item.obj)):
            item.fixturenames.insert(0, "no_leftover_tasks")


@pytest.fixture
def unused_tcp_port() -> int:
    """A free port; pytest-asyncio's is one of the kernel's own."""
    return free_port()


@pytest.fixture
def unused_tcp_port_factory() -> Callable[[], int]:
    """As many as wanted."""
    return free_port


@pytest.fixture
async def no_leftover_tasks() -> AsyncIterator[None]:
    """A test that leaves a task running fails, with the task's name."""
    yield
    # A transport closes itself one loop pass after close(): give callbacks that are due their turn.
    for _ in range(3):
        await asyncio.sleep(0)
    left = [task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()} if not task.done()]
    assert not left, f"tasks left running: {left}"
