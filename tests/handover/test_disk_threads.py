"""Threads that may be left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest

from wings_proxy.handover.disk_threads import DiskThreads


@pytest.fixture
async def threads() -> AsyncIterator[DiskThreads]:
    executor = DiskThreads()
    asyncio.get_running_loop().set_default_executor(executor)
    yield executor
    executor.shutdown()


async def test_a_call_gives_its_result_or_raises(threads: DiskThreads) -> None:
    assert await asyncio.to_thread(int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await asyncio.to_thread(int, "x")


async def test_one_call_that_hangs_holds_up_no_other(threads: DiskThreads) -> None:
    hung = threading.Event()
    waiting = asyncio.create_task(asyncio.to_thread(hung.wait), name="hangs")
    await asyncio.sleep(0)
    assert await asyncio.gather(*(asyncio.to_thread(int, "7") for _ in range(100))) == [7] * 100
    hung.set()
    assert await waiting


async def test_a_thread_that_is_free_is_used_again(threads: DiskThreads) -> None:
    names = set()
    for _ in range(20):
        names.add(await asyncio.to_thread(lambda: threading.current_thread().name))
        while not threads._free._value:  # noqa: ASYNC110 - a thread says so a moment after its answer
            await asyncio.sleep(0)
    assert names == {"disk 0"}


async def test_a_call_given_up_before_it_began_is_not_made(threads: DiskThreads) -> None:
    release = threading.Event()
    made: list[int] = []
    hanging = [asyncio.create_task(asyncio.to_thread(release.wait), name="hangs") for _ in range(32)]
    await asyncio.sleep(0)
    late = threads.submit(made.append, 1)
    assert late.cancel()
    release.set()
    await asyncio.gather(*hanging)
    assert await asyncio.to_thread(int, "7") == 7
    assert not made


def test_shutdown_waits_for_a_call_that_ends() -> None:
    executor = DiskThreads()
    future = executor.submit(time.sleep, 0.05)
    executor.shutdown()
    assert future.done()


HANGS = """
import asyncio, signal, sys, threading
from wings_proxy.handover.disk_threads import DiskThreads
async def main():
    asyncio.get_running_loop().set_default_executor(DiskThreads())
    try:
        async with asyncio.timeout(0.1):
            await asyncio.to_thread(threading.Event().wait)
    except TimeoutError:
        return 7
sys.exit(asyncio.run(main()))
"""


def test_a_process_ends_although_a_call_of_it_never_does() -> None:
    assert subprocess.run([sys.executable, "-c", HANGS], timeout=60, check=False).returncode == 7
