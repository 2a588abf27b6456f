"""The sidecar as a program of its own, and what the kernel tells of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Program:
    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str, timeout: float = 60.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/health")[1]))

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 60.0) -> dict[str, Any]:
        """Return the body of /health once it is as wanted."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                body = self.health()
                if wanted(body):
                    return body
                assert time.monotonic() < deadline, body
            assert self.process.poll() is None, f"the sidecar ended with {self.process.returncode}"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def metric(self, sample: str) -> float:
        status, page = self.get("/metrics")
        assert status == 200
        return next(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(sample + " "))

    @property
    def resident_mib(self) -> float:
        return self._mib("VmRSS")

    @property
    def most_resident_mib(self) -> float:
        return self._mib("VmHWM")

    @property
    def data_mib(self) -> float:
        """What counts for the limit of `prlimit --data`."""
        return self._mib("VmData")

    def _mib(self, name: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name + ":"))

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def denied_seconds(self) -> float:
        """How long it could have run and was not let, since other processes had the cores (proc(5), schedstat)."""
        return denied_seconds(f"/proc/{self.process.pid}/schedstat")

    def quiet(self) -> None:
        """Return once it has next to nothing to do."""
        used = -1.0
        while self.cpu_seconds - used > 0.1:
            used = self.cpu_seconds
            time.sleep(0.5)

    @property
    def late_timers(self) -> float:
        """How often the sidecar's own timer was more than 100 ms late."""
        name = "wings_event_loop_lag_seconds"
        return self.metric(f"{name}_count") - self.metric(f'{name}_bucket{{le="0.1"}}')


def denied_seconds(path: str = "/proc/thread-self/schedstat") -> float:
    return int(Path(path).read_text().split()[1]) / 1e9


def stolen_seconds() -> float:
    """How long a core of this machine had work and its host gave it to another machine (proc(5), stat)."""
    with Path("/proc/stat").open() as stat:
        return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def program(
    volume: Path,
    engine_port: int,
    *,
    wrapper: tuple[str, ...] = (),
    ready: bool = True,
    stdout: int = subprocess.DEVNULL,
    **environ: str,
) -> Iterator[Program]:
    """Run `wings-proxy serve`, killed at the end if it is still there."""
    port = free_port()
    settings = {"MODEL_PATH": "/models/tiny-qwen2", "ENGINE_PORT": str(engine_port), "WINGS_PORT": str(port)} | {
        "WINGS_HOST": "127.0.0.1",
        "SHARED_VOLUME_PATH": str(volume),
        "WINGS_PROBE_INTERVAL_SECONDS": "0.5",
        "WINGS_QUIET_SECONDS": "0",
        "WINGS_ACCESS_LOG": "false",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "wings_proxy"],
        env={**os.environ, **settings, **environ},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
    )
    running = Program(port, process)
    try:
        running.until(lambda body: body["state"] == "ready" or not ready)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def fake_engine_program(port: int, **switches: object) -> Iterator[None]:
    """Run the fake engine as a program."""
    words = [word for name, value in switches.items() for word in ("--fake", f"{name}={value}")]
    command = [sys.executable, "-m", "tests.fake", "--port", str(port), *words]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.kill()


class Clients:
    """Clients of `load_clients.py`."""

    def __init__(self, what: str, port: int, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.load_clients", what, str(port), str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Clients:
        return self

    def begun(self) -> None:
        """Return when all of them have begun."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begun\n"

    def told(self, *, stop: bool) -> dict[str, Any]:
        """Return what they tell in the end; *stop* them, or wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if stop:
            self._process.stdin.close()
        return dict(json.loads(self._process.stdout.readline()))

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
