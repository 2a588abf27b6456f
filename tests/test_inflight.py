"""What is in flight, and since when the engine has been silent about it."""

from __future__ import annotations

import asyncio

from wings_proxy.inflight import Inflight


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_are_counted_from_admission_to_end() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    inflight.begin()
    inflight.end(sent=False)
    assert (inflight.count, inflight.total) == (1, 2)


def test_an_engine_that_holds_no_request_is_not_silent() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    assert inflight.silent_since is None


def test_silence_begins_when_the_engine_gets_its_first_request_not_with_the_last_byte_long_ago() -> None:
    clock = Clock()
    inflight = Inflight(clock)
    inflight.last_byte = 50.0
    inflight.begin()
    inflight.sent()
    assert inflight.silent_since == 100.0
    clock.now = 130.0
    inflight.begin()
    inflight.sent()
    assert inflight.silent_since == 100.0


def test_any_byte_ends_the_silence() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    inflight.sent()
    inflight.last_byte = 101.0
    assert inflight.silent_since == 101.0
    inflight.end(sent=True)
    assert inflight.silent_since is None


async def test_drained_when_nothing_is_in_flight() -> None:
    await Inflight(Clock()).drained()


async def test_drained_waits_for_the_last_request() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    inflight.begin()
    waiters = [asyncio.create_task(inflight.drained()) for _ in range(2)]
    await asyncio.sleep(0)
    inflight.end(sent=False)
    await asyncio.sleep(0)
    assert not any(waiter.done() for waiter in waiters)
    inflight.end(sent=False)
    await asyncio.gather(*waiters)


async def test_one_that_began_meanwhile_is_waited_for_too() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    waiter = asyncio.create_task(inflight.drained())
    await asyncio.sleep(0)
    inflight.end(sent=False)
    inflight.begin()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiter.done()
    inflight.end(sent=False)
    await waiter


async def test_a_waiter_that_gave_up_is_forgotten() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    waiter = asyncio.create_task(inflight.drained())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.sleep(0)
    inflight.end(sent=False)
    assert waiter.cancelled()
