"""What is in flight, and since when the engine has been silent about it."""

from __future__ import annotations

import asyncio

from wings_proxy.proxy.inflight import Inflight


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
    inflight.last_work = 50.0
    inflight.begin()
    inflight.sent()
    assert inflight.silent_since == 100.0
    clock.now = 130.0
    inflight.begin()
    inflight.sent()
    assert inflight.silent_since == 100.0


def test_a_byte_of_work_ends_the_silence() -> None:
    inflight = Inflight(Clock())
    inflight.begin()
    inflight.sent()
    inflight.last_work = 101.0
    assert inflight.silent_since == 101.0
    inflight.end(sent=True)
    assert inflight.silent_since is None


def test_an_answer_whose_client_does_not_read_is_no_silence_of_the_engine() -> None:
    clock = Clock()
    inflight = Inflight(clock)
    seen = []
    inflight.begin()
    inflight.sent()
    inflight.stop_reading()
    seen.append(inflight.silent_since)
    clock.now = 130.0
    inflight.begin()
    inflight.sent()  # of this one it is
    seen.append(inflight.silent_since)
    inflight.end(sent=True)
    clock.now = 150.0
    inflight.read_on()
    seen.append(inflight.silent_since)
    inflight.begin()
    inflight.sent()
    inflight.stop_reading()
    clock.now = 170.0
    inflight.read_on()  # the other was read all the time
    seen.append(inflight.silent_since)
    inflight.end(sent=True)
    inflight.end(sent=True)
    seen.append(inflight.silent_since)
    assert seen == [None, 130.0, 150.0, 150.0, None]


def test_clients_that_give_up_and_come_again_do_not_end_the_silence() -> None:
    clock = Clock()
    inflight, seen = Inflight(clock), []
    for _ in range(3):
        inflight.begin()
        inflight.sent()
        clock.now += 10  # nobody waits longer
        inflight.end(sent=True, given_up=True)
        clock.now += 2
    inflight.begin()
    inflight.sent()
    # Thirty seconds of it until now; the pauses are not the engine's.
    seen.append(clock.now - (inflight.silent_since or 0))
    inflight.last_work = clock.now = clock.now + 5
    inflight.end(sent=True)
    inflight.begin()
    inflight.sent()
    seen.append(clock.now - (inflight.silent_since or 0))
    assert seen == [30.0, 0.0]


def test_a_byte_of_work_in_between_makes_it_another_silence() -> None:
    clock = Clock()
    inflight = Inflight(clock)
    inflight.begin()
    inflight.sent()
    clock.now = 110.0
    inflight.last_work = 108.0
    inflight.end(sent=True, given_up=True)
    clock.now = 111.0
    inflight.begin()
    inflight.sent()
    assert inflight.silent_since == 109.0  # two seconds of silence before, none now


def test_what_is_given_up_now_and_then_is_no_long_silence() -> None:
    clock = Clock()
    inflight, seen = Inflight(clock), []
    for _ in range(100):
        inflight.begin()
        inflight.sent()
        seen.append(clock.now - (inflight.silent_since or 0))
        clock.now += 10
        inflight.end(sent=True, given_up=True)
        clock.now += 11
    assert set(seen) == {0.0}


def test_what_the_engines_front_answers_alone_neither_ends_a_silence_nor_is_one() -> None:
    clock = Clock()
    inflight, seen = Inflight(clock), []
    inflight.begin()
    inflight.sent()
    clock.now = 120.0
    inflight.end(sent=True, given_up=True)
    for _ in range(3):
        inflight.begin()
        inflight.sent()
        seen.append(clock.now - (inflight.silent_since or 0))
        clock.now += 5
        inflight.end(sent=True)  # a list of models, a refusal
    assert seen == [20.0, 20.0, 20.0]
    clock.now = 141.0
    inflight.begin()
    inflight.sent()
    assert inflight.silent_since == 141.0


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
