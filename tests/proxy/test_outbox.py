"""Events of one turn leave together, in their order, and one client's trouble is no other's."""

from __future__ import annotations

import asyncio

import pytest

from wings_proxy.proxy.outbox import MOST, Outbox


class Client:
    """Writes down what it is given, in a book that all share."""

    def __init__(self, name: str, book: list[tuple[str, bytes]], *, broken: bool = False) -> None:
        self.name = name
        self.book = book
        self.broken = broken

    def write(self, data: bytes) -> None:
        if self.broken:
            raise RuntimeError("the handler is closed")
        self.book.append((self.name, data))


async def test_what_was_put_in_leaves_at_the_end_of_the_turn_in_its_order() -> None:
    book: list[tuple[str, bytes]] = []
    a, b = Client("a", book), Client("b", book)
    outbox = Outbox(asyncio.get_running_loop())
    outbox.put(a, b"1")
    outbox.put(b, b"2")
    outbox.put(a, b"3")
    assert not book
    await asyncio.sleep(0)
    assert book == [("a", b"1"), ("b", b"2"), ("a", b"3")]
    outbox.put(b, b"4")
    await asyncio.sleep(0)
    assert book[3:] == [("b", b"4")]


async def test_what_must_go_first_can_be_sent_at_once() -> None:
    book: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    outbox.flush()
    outbox.put(Client("a", book), b"1")
    outbox.flush()
    assert book == [("a", b"1")]
    await asyncio.sleep(0)
    assert book == [("a", b"1")]


async def test_the_first_does_not_wait_for_many() -> None:
    book: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    for i in range(MOST - 1):
        outbox.put(Client("a", book), b"%d" % i)
    assert not book
    outbox.put(Client("a", book), b"last")
    assert len(book) == MOST


async def test_a_client_that_cannot_be_written_to_loses_no_other_its_bytes() -> None:
    book: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    outbox.put(Client("a", book), b"1")
    outbox.put(Client("x", book, broken=True), b"lost")
    outbox.put(Client("b", book), b"2")
    with pytest.raises(RuntimeError, match="closed"):
        outbox.flush()
    assert book == [("a", b"1")]
    outbox.put(Client("b", book), b"3")
    await asyncio.sleep(0)
    assert book == [("a", b"1"), ("b", b"2"), ("b", b"3")]
