"""A pod for tests: sidecar and engine container as two process trees, and the volume they share.

The engine's container runs the line a manifest has (`launch.engine_stub`) in a real shell, with the fake engine in the
place of `python3`; the sidecar is `python -m wings_proxy serve`. Both are restarted as a kubelet would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.fake_engine import write_shims
from tests.kubelet import Container
from tests.ports import free_port
from wings_proxy.handover.engine_status import EngineStatus, parse_status
from wings_proxy.handover.launch import engine_stub
from wings_proxy.handover.volume import SCRIPT_NAME, STATUS_NAME

ROOT = Path(__file__).parent.parent
# A file system in memory, as the pod's volume is.
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Change:
    """A transition as the sidecar logged it; `at` is the wall clock, seconds."""

    at: float
    source: str
    target: str
    event: str
    reason: str


class Pod:
    """Two containers and their volume; as a context manager it leaves no process and no file behind."""

    def __init__(self, *, engine: Mapping[str, object] | None = None, **environ: str) -> None:
        """Take the fake engine's switches, and more or other variables for the sidecar."""
        base = _MEMORY if _MEMORY.is_dir() else None
        self.directory = Path(tempfile.mkdtemp(prefix="pod-", dir=base))
        self.directory.chmod(0o755)
        self.volume = self.directory / "volume"
        self.volume.mkdir()
        self.volume.chmod(0o777)
        self.port, self.engine_port = free_port(), free_port()
        self._programs = self.directory / "bin"
        self._programs.mkdir()
        write_shims(self._programs)
        system = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
        self.sidecar = Container(
            "sidecar",
            [sys.executable, "-m", "wings_proxy", "serve"],
            system
            | {
                "PYTHONPATH": str(ROOT),
                "MODEL_PATH": "/models/tiny-qwen2",
                "MAX_NUM_SEQS": "256",
                "SHARED_VOLUME_PATH": str(self.volume),
                "ENGINE_PORT": str(self.engine_port),
                "WINGS_PORT": str(self.port),
                "WINGS_HOST": "127.0.0.1",
                "WINGS_PROBE_INTERVAL_SECONDS": "0.2",
                "WINGS_PROBE_TIMEOUT_SECONDS": "1",
                "WINGS_QUIET_SECONDS": "0.3",
                "WINGS_DRAIN_SECONDS": "10",
                "WINGS_ENGINE_STOP_SECONDS": "3",
            }
            | environ,
            self.directory,
        )
        self.engine = Container(
            "engine",
            ["sh", "-c", engine_stub(str(self.volume / SCRIPT_NAME))],
            system | {"PATH": f"{self._programs}:{system['PATH']}"},
            self.directory,
        )
        self.set_engine(**(engine or {}))
        self._session: aiohttp.ClientSession | None = None

    def set_engine(self, **switches: object) -> None:
        """Set the fake engine's switches, for its next start."""
        self.engine.environ["FAKE_ENGINE"] = json.dumps(switches)

    def add_program(self, name: str, script: str) -> None:
        """Put a program first on the PATH of the engine's container."""
        program = self._programs / name
        program.write_text(script)
        program.chmod(0o755)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=10)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        try:
            await self.sidecar.stop()
        finally:
            await self.engine.stop()
            shutil.rmtree(self.directory)

    # What a test does.

    async def start(self) -> None:
        """Start both containers, the engine's when the script is there: its shell looks only once a second."""
        self.sidecar.start()
        await self.sidecar.until((self.volume / SCRIPT_NAME).exists, 40)
        self.engine.start()

    def kill_both(self) -> None:
        """SIGKILL both containers at once, as a node that loses power."""
        for container in (self.sidecar, self.engine):
            for pid in container.processes():
                with contextlib.suppress(ProcessLookupError):  # ended between the two lines
                    os.kill(pid, signal.SIGKILL)

    # What a test sees.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a path of the sidecar; (0, b"") if it does not answer."""
        assert self._session is not None
        try:
            async with self._session.get(self.url + path) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, b""

    async def health(self) -> dict[str, Any]:
        """Return the body of /health; an empty one if nobody answers."""
        _, body = await self.get("/health")
        return json.loads(body) if body else {}

    async def until(self, condition: Callable[[dict[str, Any]], object], seconds: float = 50.0) -> dict[str, Any]:
        """Wait until /health is as wanted; return it."""
        deadline = time.monotonic() + seconds
        while not condition(health := await self.health()):
            assert time.monotonic() < deadline, f"not in {seconds} s: {health}\n{self.story()}"
            await asyncio.sleep(0.02)
        return health

    async def until_state(self, *states: str, seconds: float = 50.0) -> dict[str, Any]:
        """Wait until /health names one of these states, and our log has told of it; return the body.

        The log is written beside the event loop, a moment later; a state that has passed meanwhile is not waited for.
        """
        health = await self.until(lambda health: health.get("state") in states, seconds)
        await self.told(str(health["state"]))
        return health

    async def told(self, state: str) -> None:
        """Wait until the log's last word is this state, or it has been another's for a while."""
        for _ in range(300):
            if state == "waiting" or self.path[-1:] == [state]:
                return
            await asyncio.sleep(0.01)

    @property
    def leader(self) -> int | None:
        """The engine's own first process, as the script started it: it leads a session of its own."""
        for pid in self.engine.processes():
            try:
                if pid != self.engine.pid and os.getsid(pid) == pid:
                    return pid
            except ProcessLookupError:
                continue
        return None

    @property
    def status(self) -> EngineStatus | None:
        """What the script said last."""
        try:
            return parse_status((self.volume / STATUS_NAME).read_bytes())
        except OSError:
            return None

    def log(self) -> list[dict[str, Any]]:
        """All whole log lines of the sidecar that are JSON, oldest first."""
        lines = self.sidecar.printed.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    @property
    def changes(self) -> list[Change]:
        """The transitions the sidecar logged, over all its runs."""
        changes = []
        for line in self.log():
            source, arrow, target = line["message"].partition(" -> ")
            if arrow and "event" in line:
                at = datetime.fromisoformat(line["time"]).timestamp()
                changes.append(Change(at, source, target, line["event"], line["reason"]))
        return changes

    @property
    def path(self) -> list[str]:
        """The states of all runs of the sidecar; each run begins in `waiting`."""
        path: list[str] = []
        for change in self.changes:
            if change.source == "waiting":
                path.append("waiting")
            path.append(change.target)
        return path

    def story(self) -> str:
        """Everything both containers printed, for a test that failed."""
        parts = [f"path: {' '.join(self.path)}", f"status: {self.status}"]
        for container in (self.sidecar, self.engine):
            exits = [end.code for end in container.exits]
            parts.append(f"--- {container.name}: {container.starts} starts, exits {exits}, orphans {container.orphans}")
            parts.append(container.printed[-6000:])
        return "\n".join(parts)

    def assert_clean(self) -> None:
        """No orphan was left, and the sidecar never broke."""
        assert self.engine.orphans == [], self.story()
        assert self.sidecar.orphans == [], self.story()
        assert "Traceback" not in self.sidecar.printed, self.story()
