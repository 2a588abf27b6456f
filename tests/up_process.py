"""A `wings-proxy up` as a process of its own, and everything below it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.processes import command_line, marked

ROOT = Path(__file__).parents[1]


class UpProcess:
    """A running `wings-proxy up`; everything it starts is recognised by its HOME."""

    # How long an end, or what a test waits for, may take.
    patience_seconds = 50.0

    def __init__(self, directory: Path, port: int, *arguments: str, **environ: str) -> None:
        """Start it; `directory` becomes its HOME, `port` is where the sidecar listens."""
        self._mark = f"HOME={directory}"
        self.url = f"http://127.0.0.1:{port}"
        self._errors = directory / "stderr"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "wings_proxy", "up", *arguments),
                env={"HOME": str(directory), "PYTHONPATH": str(ROOT), "WINGS_PORT": str(port), **environ},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def said(self) -> list[str]:
        return [line.removeprefix("wings-proxy: ") for line in self._errors.read_text().splitlines()]

    def ready(self) -> None:
        self.until(lambda: "stop:  Ctrl-C" in self.said)

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not happened():
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.02)

    def story(self) -> str:
        """Everything it told, for a test that failed."""
        return self._errors.read_text()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(self.patience_seconds)

    def kill(self) -> None:
        """End everything at once, for a test that is over."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def processes(self) -> Mapping[int, str]:
        """Return the command line of every process of this run that is alive, `up` included."""
        return {pid: command_line(pid) for pid in marked(self._mark)}

    def pid(self, words: str) -> int | None:
        """Return the one process whose command line contains the words (the script has sub-shells: the first)."""
        return min((pid for pid, line in self.processes().items() if words in line), default=None)

    def health(self) -> dict[str, Any]:
        """Return the body of /health, whatever its status; an empty one if nobody answers."""
        body: dict[str, Any] = {}
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                body = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                body = json.load(error)
        except OSError:
            pass
        return body
