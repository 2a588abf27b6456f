"""The sidecar is a process of its own here: the loop a test runs on changes nothing, so one is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test once."""
    return {"asyncio": asyncio.new_event_loop}
