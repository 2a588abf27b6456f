"""Threads for system calls that may wait for a disk, or a volume of the network, that never answers.

A thread in such a call cannot be ended. Those of the standard library are waited for when the loop is closed and once
more when the interpreter ends: a volume that hangs would keep a process that was told to stop until it is killed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MOST: Final = 32
_PATIENCE_SECONDS: Final = 1.0


class DiskThreads(ThreadPoolExecutor):
    """A loop's default executor whose threads are daemons: what hangs in them is left behind, after a second.

    A `ThreadPoolExecutor` by name alone, as a loop wants none else; `submit` is called from one thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(0)
        self._begun: list[threading.Thread] = []

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run *fn* in a thread."""
        future: Future[R] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - who waits for the future raises it
                future.set_exception(error)
            else:
                future.set_result(result)

        self._calls.put(call)
        if not self._free.acquire(blocking=False) and len(self._begun) < _MOST:
            thread = threading.Thread(target=self._run, name=f"disk {len(self._begun)}", daemon=True)
            self._begun.append(thread)
            thread.start()
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            self._free.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - as in the base class
        """End the threads; with *wait*, give those a moment that are in a call."""
        for _ in self._begun:
            self._calls.put(None)
        deadline = time.monotonic() + (_PATIENCE_SECONDS if wait else 0.0)
        for thread in self._begun:
            thread.join(max(0.0, deadline - time.monotonic()))
