"""What stands for the engine's container in tests: the launch script in a volume of its own, run by a real shell.

What a test leaves behind is found by a variable in its environment, and ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import marked
from wings_proxy.handover.engine_status import EngineStatus, parse_status
from wings_proxy.handover.launch import LaunchSpec, render

ALL_SHELLS = {
    "dash": ("dash",),
    "bash": ("bash",),
    "bash as sh": ("bash", "--posix"),
    "busybox": ("busybox", "sh"),
}
SHELLS = {name: command for name, command in ALL_SHELLS.items() if shutil.which(command[0])}


def shell_command(shell: str) -> list[str]:
    """The words that start a shell, by its full path: some tests change PATH."""
    program, *options = SHELLS[shell]
    path = shutil.which(program)
    assert path is not None
    return [path, *options]


@dataclass
class Container:
    """What stands for the engine's container: the script in its directory, started by one of the shells."""

    shell: str
    root: Path
    prefix: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def shell_command(self) -> list[str]:
        return shell_command(self.shell)

    @property
    def volume(self) -> Path:
        return self.root / "volume"

    @property
    def stdout(self) -> bytes:
        return (self.root / "stdout").read_bytes()

    @property
    def stderr(self) -> bytes:
        return (self.root / "stderr").read_bytes()

    def log(self, name: str = "engine.log") -> bytes:
        path = self.volume / name
        return path.read_bytes() if path.exists() else b""

    def files(self) -> list[str]:
        return sorted(entry.name for entry in self.volume.iterdir())

    def status(self) -> EngineStatus | None:
        path = self.volume / "engine.status"
        return parse_status(path.read_bytes()) if path.exists() else None

    def publish(self, *argv: str, release: int = 5, stop: int = 5, env: tuple[tuple[str, str], ...] = ()) -> str:
        script = render(LaunchSpec(argv, env, release, stop))
        self.volume.mkdir(exist_ok=True)
        # In one step, as the sidecar does: somebody may be waiting for it.
        (self.volume / "new").write_bytes(script.text)
        (self.volume / "new").rename(self.volume / "start_command.sh")
        return script.generation

    def publish_program(
        self, program: str, *arguments: str, release: int = 5, stop: int = 5, env: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Publish a Python program as the engine."""
        (self.root / "engine.py").write_text(program)
        self.publish(
            sys.executable, "-IS", str(self.root / "engine.py"), *arguments, release=release, stop=stop, env=env
        )

    def start(self) -> subprocess.Popen[bytes]:
        with (self.root / "stdout").open("wb") as out, (self.root / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [*self.prefix, *self.shell_command, str(self.volume / "start_command.sh")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | self.env | {"WINGS_TEST_ROOT": str(self.root)},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, program: str, *arguments: str, release: int = 5, stop: int = 5) -> subprocess.Popen[bytes]:
        """Publish a Python program as the engine, start it, wait until it says that it is up."""
        self.publish_program(program, *arguments, release=release, stop=stop)
        process = self.start()
        self.until(lambda: b"up" in self.log())
        return process

    @staticmethod
    def until(condition: Callable[[], object], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass in time"
            time.sleep(0.005)

    def left_behind(self) -> list[int]:
        """Processes of this container that are still there."""
        return marked(f"WINGS_TEST_ROOT={self.root}")

    def clear(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        for pid in self.left_behind():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
