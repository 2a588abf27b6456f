"""One run for everybody who asks while it runs."""

from __future__ import annotations

import asyncio

import pytest

from wings_proxy.telemetry.single_flight import SingleFlight


class Work:
    """Counts its runs; each waits for its turn and returns its number."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()
        self.broken = False

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        if self.broken:
            raise OSError("broken")
        return number


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_while_it_runs_shares_the_run_and_who_comes_later_does_not() -> None:
    work = Work()
    flight = SingleFlight(work)
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(flight()) for _ in range(5)]
        await turns()
        assert work.begun == 1
        work.go.set()
    assert [caller.result() for caller in callers] == [1] * 5
    assert await flight() == 2


async def test_a_caller_that_leaves_takes_nobody_with_it() -> None:
    work = Work()
    flight = SingleFlight(work)
    async with asyncio.TaskGroup() as group:
        first, second, third = (group.create_task(flight()) for _ in range(3))
        await turns()
        first.cancel()
        await turns()
        assert work.begun == 2
        work.go.set()
    assert first.cancelled()
    assert (second.result(), third.result()) == (2, 2)


async def test_what_goes_wrong_is_for_the_one_that_ran_it() -> None:
    work = Work()
    flight = SingleFlight(work)
    work.broken = True
    first = asyncio.ensure_future(flight())
    second = asyncio.ensure_future(flight())
    await turns()
    work.go.set()
    with pytest.raises(OSError, match="broken"):
        await first
    with pytest.raises(OSError, match="broken"):
        await second
    assert work.begun == 2
