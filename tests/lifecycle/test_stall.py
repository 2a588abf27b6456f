"""A stall is three things at once: requests, silence, and counters that stand still. Each alone is normal."""

from __future__ import annotations

from wings_proxy.lifecycle.stall import Counters, Moved, Stalled, StallWatch

NONE = Counters(published=False)
LATE = Counters(published=True)
TOLD = "requests in flight, and nothing moved for 120 s; over when an answer goes on or the engine's counters move"


class Engine:
    """An engine watched every 10 s with a limit of 120 s, from second 0 on."""

    def __init__(self) -> None:
        self.watch = StallWatch(120.0)
        self.now, self.epoch, self.last_byte = 0.0, 1, 0.0
        self.busy_since: float | None = None
        self.counters = Counters(published=True, value=7.0)
        self.looks = 0

    def after(self, seconds: float) -> Stalled | Moved | None:
        """Let time pass in steps of 10 s; return the last news there was."""
        news = None
        for _ in range(round(seconds / 10)):
            self.now += 10
            silent = None if self.busy_since is None else max(self.busy_since, self.last_byte)
            look = self.watch.wants_look(self.now, self.epoch, silent)
            self.looks += look
            news = (
                self.watch.judge(
                    self.now,
                    self.epoch,
                    silent_since=silent,
                    last_byte=self.last_byte,
                    counters=self.counters if look else None,
                )
                or news
            )
        return news

    def works(self) -> None:
        self.counters = Counters(published=True, value=(self.counters.value or 0.0) + 1)


def test_an_engine_without_requests_is_never_looked_at() -> None:
    engine = Engine()
    assert engine.after(10_000) is None
    assert engine.looks == 0


def test_a_stream_that_moves_is_never_looked_at() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    for _ in range(100):
        engine.last_byte = engine.now
        assert engine.after(30) is None
    assert engine.looks == 0


def test_silence_and_still_counters_are_a_stall_after_the_limit() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    assert engine.after(110) is None
    # From a third of the limit on.
    assert engine.looks == 8
    assert engine.after(10) == Stalled(1, TOLD)
    assert engine.after(1000) is None  # told once


def test_a_long_prompt_moves_the_counters() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    for _ in range(100):
        assert engine.after(60) is None
        engine.works()
    assert isinstance(engine.after(200), Stalled)


def test_what_moved_before_the_silence_is_no_sign_of_life() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    engine.after(60)
    engine.works()
    engine.last_byte = engine.now  # it answered, and then fell silent
    assert engine.after(110) is None
    assert isinstance(engine.after(10), Stalled)


def test_without_counters_silence_proves_nothing() -> None:
    engine = Engine()
    engine.busy_since, engine.counters = 0.0, NONE
    assert engine.after(10_000) is None


def test_a_page_that_cannot_be_read_proves_nothing() -> None:
    engine = Engine()
    engine.busy_since, engine.counters = 0.0, LATE
    # An engine whose pages do not come does not answer its probes either: that is their affair.
    assert engine.after(10_000) is None
    engine.counters = Counters(published=True, value=7.0)
    assert engine.after(10) is None  # one value stands still for nobody
    assert isinstance(engine.after(10), Stalled)


def test_requests_that_come_and_go_are_one_silence() -> None:
    """As `Inflight` tells it: the pauses in between are taken out, so its beginning moves."""
    engine = Engine()
    engine.busy_since = 0.0
    for _ in range(11):
        assert engine.after(10) is None
        engine.busy_since = None
        assert engine.after(10) is None
        engine.busy_since = engine.now - (engine.now / 2)
    assert isinstance(engine.after(10), Stalled)


def test_a_page_that_is_late_once_hides_no_progress() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    engine.after(50)
    engine.counters = LATE
    engine.after(10)
    engine.counters = Counters(published=True, value=8.0)
    assert engine.after(120) is None  # it moved meanwhile
    assert isinstance(engine.after(10), Stalled)


def test_a_byte_ends_a_stall() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    assert isinstance(engine.after(120), Stalled)
    stalled = [engine.watch.stalled]
    engine.last_byte = engine.now + 5
    assert engine.after(10) == Moved(1)
    stalled.append(engine.watch.stalled)
    assert stalled == [True, False]
    assert engine.after(10) is None


def test_a_counter_that_moves_ends_a_stall_even_if_all_clients_have_left() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    engine.after(120)
    engine.busy_since = None
    assert engine.after(100) is None
    engine.works()
    assert engine.after(10) == Moved(1)


def test_it_can_stall_again() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    engine.after(120)
    engine.works()
    assert engine.after(10) == Moved(1)
    assert engine.after(110) is None
    assert isinstance(engine.after(10), Stalled)


def test_another_run_begins_anew() -> None:
    engine = Engine()
    engine.busy_since = 0.0
    engine.after(120)
    engine.epoch, engine.busy_since = 2, engine.now
    assert engine.after(110) is None
    assert engine.after(10) == Stalled(2, TOLD)


def test_the_watch_is_no_slower_than_a_probe_and_never_a_busy_loop() -> None:
    assert [StallWatch(limit).pause for limit in (1.0, 6.0, 120.0, 86_400.0)] == [1 / 12, 0.5, 5.0, 5.0]
    assert StallWatch(0.1).pause == 0.05
