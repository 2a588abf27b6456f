"""A kubelet for tests: a container is a process tree that is restarted when it ends, and leaves nobody behind.

A container's processes are found by a variable in their environment, never by name: a test ends only what it started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.processes import command_line, marked

_MARK = "POD_CONTAINER"
# A shell's `sleep` outlives the subshell that waited for it. With process number 1 the kernel ends it; here it may.
_STRAGGLER_LOOKS = 200


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a container's main process: `code` as a kubelet shows it, and when (wall clock, seconds)."""

    code: int
    at: float


class Container:
    """Runs `command`, and runs it again `backoff` seconds after it ended, until told to stop."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        logs: Path,
        *,
        backoff: float = 0.05,
    ) -> None:
        self.name = name
        self.command = list(command)
        # What a start finds; a change takes effect at the next one.
        self.environ = dict(environ)
        self.exits: list[Exit] = []
        self.starts = 0
        # What a main process that ended by itself left behind: a container's end would hide it.
        self.orphans: list[str] = []
        self._logs = logs
        self.backoff = backoff
        self._mark = f"{name}-{uuid.uuid4()}"
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The main process, None while there is none."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    @property
    def log_files(self) -> list[Path]:
        """What each run printed, oldest first."""
        return [self._logs / f"{self.name}.{number}.log" for number in range(self.starts)]

    @property
    def printed(self) -> str:
        """What all runs printed."""
        return "".join(file.read_text(errors="replace") for file in self.log_files)

    def start(self) -> None:
        """Start, and keep running."""
        assert self._task is None
        self._stopping.clear()
        self._task = asyncio.create_task(self._run(), name=f"kubelet: {self.name}")

    def signal(self, number: int) -> bool:
        """Send a signal to the main process; False if there is none."""
        if self.pid is None:
            return False
        os.kill(self.pid, number)
        return True

    async def terminate(self, grace: float = 30.0) -> int:
        """What deletion of the pod does: SIGTERM, no restart, SIGKILL after the grace period. Returns the exit code."""
        self._stopping.set()
        await self.until(lambda: self.pid is not None or self._task is None or self._task.done(), 30.0)
        ends = len(self.exits)
        if self.signal(signal.SIGTERM):
            asyncio.get_running_loop().call_later(grace, self._out_of_grace, self.pid)
            await self.until(lambda: len(self.exits) > ends, grace + 5.0)
        return self.exits[-1].code

    def _out_of_grace(self, pid: int | None) -> None:
        if self.pid == pid:
            self.signal(signal.SIGKILL)

    async def settled(self) -> None:
        """Wait until what a terminated container left behind was looked for."""
        await self._end()

    async def stop(self) -> None:
        """End everything at once, for a test that is over."""
        self._stopping.set()
        self._kill_all()
        await self._end()
        self._kill_all()

    async def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait until `condition()` holds; it is looked at when a process starts or ends, and every 20 ms."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.name}: not in {seconds} s\n{self.printed[-3000:]}"
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await self._changed.wait()

    def processes(self) -> list[int]:
        """Every living process of this container."""
        return marked(f"{_MARK}={self._mark}")

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with (self._logs / f"{self.name}.{self.starts}.log").open("wb") as log:
                self.starts += 1
                self._process = await asyncio.create_subprocess_exec(
                    *self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environ | {_MARK: self._mark},
                    start_new_session=True,
                )
            self._changed.set()
            code = await self._process.wait()
            self.exits.append(Exit(code, time.time()))
            self._changed.set()
            if code != -signal.SIGKILL:
                await self._look_for_orphans()
            self._kill_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.backoff):
                    await self._stopping.wait()

    async def _look_for_orphans(self) -> None:
        for _ in range(_STRAGGLER_LOOKS):
            if not self.processes():
                return
            await asyncio.sleep(0.05)
        self.orphans += [command_line(pid) or f"process {pid}, gone meanwhile" for pid in self.processes()]

    async def _end(self) -> None:
        task = self._task
        if task is not None:
            await asyncio.wait({task})
            self._task = None
            task.result()

    def _kill_all(self) -> None:
        # Somebody may be between two forks: look until nobody is found.
        while pids := self.processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
