"""A pod on one machine: two containers that are restarted like a kubelet would, and end together.

What a container runtime does by PID namespace is done here with sessions, parent-death signals and a child
subreaper (`process_tree`): whatever a container started ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wings_proxy.local.process_tree import become_subreaper, end_strangers, has_parent_death_signal

_HEALTHY_SECONDS: Final = 60.0
_LONGEST_DELAY_SECONDS: Final = 30.0
_LOG_LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What one container runs; its output is appended to `log`."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """One end of a container that nobody asked for. `code` is negative for a signal, as in `subprocess`."""

    name: str
    code: int
    restart_seconds: float


class BackOff:
    """Delays before a restart: 1, 2, 4 … 30 s, from the beginning again after a healthy minute."""

    def __init__(self) -> None:
        self._next_seconds = 1.0

    def after(self, ran_seconds: float) -> float:
        """Return the delay after a run of that length."""
        if ran_seconds >= _HEALTHY_SECONDS:
            self._next_seconds = 1.0
        delay = self._next_seconds
        self._next_seconds = min(2 * delay, _LONGEST_DELAY_SECONDS)
        return delay


class Container:
    """One process with everything below it, started again whenever it ends until `stop`."""

    def __init__(self, spec: ContainerSpec, prefix: Sequence[str], back_off: BackOff | None = None) -> None:
        self.spec = spec
        self._back_off = back_off or BackOff()
        self._prefix = prefix
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The first process of the container while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self, on_end: Callable[[Ended], None], clean: Callable[[], Awaitable[None]]) -> None:
        """Run until `stop`; `clean` ends what a dead container left behind before it is started again."""
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            self._process = await self._start()
            if self._stopping.is_set():
                self.signal(signal.SIGTERM)
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            await clean()
            delay = self._back_off.after(loop.time() - started)
            on_end(Ended(self.spec.name, code, delay))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _start(self) -> asyncio.subprocess.Process:
        with self.spec.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._prefix,
                *self.spec.argv,
                env=self.spec.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: a Ctrl-C at the terminal is for us to pass on, in the order we choose.
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask the container to end, now and for good."""
        self._stopping.set()
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the first process, as a container runtime does."""
        # Not Process.send_signal: it polls, and would take the exit code from asyncio's own watcher.
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Pod:
    """The containers of one `up`, from start to a certain end."""

    def __init__(self, specs: Sequence[ContainerSpec]) -> None:
        become_subreaper()
        # Should we be killed, the containers get a SIGTERM from the kernel and end by their own protocol.
        prefix = ("setpriv", "--pdeathsig", "TERM", "--") if has_parent_death_signal() else ()
        self._containers = [Container(spec, prefix) for spec in specs]

    async def run(self, on_end: Callable[[Ended], None]) -> None:
        """Keep all containers running until `stop`, and return when nothing of them is left."""
        try:
            async with asyncio.TaskGroup() as group:
                for container in self._containers:
                    group.create_task(container.run(on_end, self._clean), name=f"container {container.spec.name}")
        finally:
            await end_strangers(())

    async def _clean(self) -> None:
        await end_strangers([pid for container in self._containers if (pid := container.pid) is not None])

    def stop(self) -> None:
        """Ask every container to end; `run` returns when they have."""
        for container in self._containers:
            container.stop()

    def kill(self) -> None:
        """End every container at once; `run` sees to what they leave."""
        for container in self._containers:
            container.stop()
            container.signal(signal.SIGKILL)

    def trim_logs(self) -> None:
        """Start a log that has grown beyond 64 MiB anew: its writers append, so they go on at its beginning."""
        for container in self._containers:
            with contextlib.suppress(FileNotFoundError):
                if container.spec.log.stat().st_size > _LOG_LIMIT_BYTES:
                    os.truncate(container.spec.log, 0)
