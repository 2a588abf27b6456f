"""In each turn of the loop so many shares are given out, in the order they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wings_proxy.proxy.upload_pace import SHARES, UploadPace


def noting(name: str, book: list[str]) -> Callable[[], None]:
    return lambda: book.append(name)


async def test_a_turn_has_so_many_shares_and_the_rest_waits_in_its_order() -> None:
    book: list[str] = []
    pace = UploadPace(asyncio.get_running_loop(), shares=2)
    for name in "abcde":
        pace.ask(noting(name, book))
    assert book == ["a", "b"]
    await asyncio.sleep(0)
    assert book == ["a", "b", "c", "d"]
    await asyncio.sleep(0)
    assert book == ["a", "b", "c", "d", "e"]


async def test_who_asks_again_comes_behind_those_who_wait() -> None:
    book: list[str] = []
    pace = UploadPace(asyncio.get_running_loop(), shares=1)

    def greedy() -> None:
        book.append("greedy")
        if len(book) < 4:
            pace.ask(greedy)

    pace.ask(greedy)
    pace.ask(noting("modest", book))
    for _ in range(4):
        await asyncio.sleep(0)
    assert book == ["greedy", "greedy", "modest", "greedy"]


async def test_shares_that_nobody_took_are_not_saved_up() -> None:
    book: list[str] = []
    pace = UploadPace(asyncio.get_running_loop(), shares=2)
    pace.ask(noting("a", book))
    for _ in range(5):
        await asyncio.sleep(0)
    for name in "bcd":
        pace.ask(noting(name, book))
    assert book == ["a", "b", "c"]


async def test_tasks_wait_for_shares_like_all_others_and_one_that_ends_costs_nobody_its_place() -> None:
    book: list[str] = []
    pace = UploadPace(asyncio.get_running_loop(), shares=1)

    async def task(name: str) -> None:
        await pace.share()
        book.append(name)

    tasks = [asyncio.create_task(task(name), name=name) for name in "abcd"]
    await asyncio.sleep(0)
    assert book == ["a"]
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert book == ["a", "c", "d"]


async def test_an_idle_pace_leaves_the_loop_in_peace() -> None:
    loop = asyncio.get_running_loop()
    pace = UploadPace(loop)
    for _ in range(SHARES):
        await pace.share()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not pace._begun
    assert not pace._waiting
