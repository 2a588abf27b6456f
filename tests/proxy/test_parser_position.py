"""Where the parser stands, told from what it was fed and what it found."""

from __future__ import annotations

import pytest

from tests.parsed import parsed
from wings_proxy.proxy.parser_position import ParserPosition

HEAD = b"POST / HTTP/1.1\r\nHost: p\r\nContent-Length: 5\r\n\r\n"


def after(data: bytes, head: bytes = HEAD) -> ParserPosition:
    """Return the position after *data*, in which *head* stands."""
    position = ParserPosition()
    position.head(data, data.find(b"\r\n\r\n") + 4, parsed(head))
    return position


def test_between_requests_from_the_start_and_after_each_body() -> None:
    assert ParserPosition().between_requests
    assert after(HEAD + b"12345").between_requests
    position = after(HEAD + b"12")
    for size in (2, 1):
        assert (position.known, position.between_requests, position.inside_body) == (True, False, True)
        position.body(size, began=False)
    assert (position.known, position.between_requests, position.inside_body) == (True, True, False)


def test_it_knows_how_much_of_a_body_is_to_come() -> None:
    position = after(HEAD + b"12")
    assert [position.inside_body_for(size) for size in (0, 1, 3, 4)] == [False, True, True, False]
    assert not ParserPosition().inside_body_for(1)
    position.lose()
    assert not position.inside_body_for(1)


def test_a_request_without_a_length_has_no_body() -> None:
    head = b"GET / HTTP/1.1\r\nHost: p\r\n\r\n"
    assert after(head, head).between_requests


def test_an_offer_that_nobody_takes_up_is_followed() -> None:
    head = b"GET / HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert after(head, head).between_requests
    assert not after(head + b"G", head).known


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_chunks_and_upgrades_are_not_followed(head: bytes) -> None:
    assert not after(head, head).known


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"123456",  # pipelined
        b"\r\n" + HEAD + b"12345",  # a blank line before it: where the head ends is not where it seems to
        HEAD.replace(b"Host: p\r\n", b"Host: p\nA: b\r\n"),  # a lenient parser's line
    ],
)
def test_what_is_more_or_other_than_one_request_is_not_followed(data: bytes) -> None:
    assert not after(data).known


@pytest.mark.parametrize(("size", "began"), [(6, False), (5, True)])
def test_more_than_a_body_is_not_followed(size: int, began: bool) -> None:
    position = after(HEAD)
    position.body(size, began=began)
    assert not position.known


def test_lost_for_good() -> None:
    position = ParserPosition()
    position.lose()
    assert (position.known, position.between_requests, position.inside_body) == (False, False, False)
