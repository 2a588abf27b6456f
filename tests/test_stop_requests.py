"""One wish to stop, or two."""

from __future__ import annotations

from wings_proxy.stop_requests import StopRequests


class Told:
    def __init__(self) -> None:
        self.now = 1000.0
        self.story: list[str] = []
        self.signal = StopRequests(
            lambda: self.now, ask=lambda: self.story.append("ask"), force=lambda: self.story.append("force")
        )


def test_the_first_asks_and_a_later_one_forces() -> None:
    told = Told()
    told.signal()
    assert told.story == ["ask"]

    told.now += 0.5
    told.signal()
    assert told.story == ["ask", "force"]


def test_what_comes_twice_at_once_is_one_wish() -> None:
    told = Told()
    for _ in range(5):
        told.signal()
        told.now += 0.09
    assert told.story == ["ask"]


def test_an_echo_does_not_put_off_the_second_wish() -> None:
    told = Told()
    told.signal()
    told.now += 0.4
    told.signal()
    told.now += 0.1
    told.signal()
    assert told.story == ["ask", "force"]
