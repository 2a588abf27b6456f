"""Start a proxy, put a load on it, and take its figures; round by round, every proxy in turn."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.peers import API_KEY, Launch, Variant
from tests.bench.results import DIRECT, IMPORTS, START, Metric, Results
from tests.bench.tools import Load, Tools, on_cores
from tests.bench.workloads import Workload
from tests.ports import free_port

_IMPORT_PROGRAM: Final = (
    "import aiofiles, prometheus_client, uvloop, yaml\nfrom aiohttp import web\nprint(flush=True)\ninput()"
)
_START_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.002
_SETTLE_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 5.0
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs and forwards."""

    port: int
    pids: tuple[int, ...]
    listen_seconds: float
    """From its start to its first answer of any kind."""
    start_seconds: float
    """From its start to its first forwarded answer."""
    start_cpu_seconds: float
    idle_bytes: int


@contextlib.contextmanager
def running(variant: Variant, engine_port: int, cores: frozenset[int]) -> Iterator[Proxy]:
    """Run *variant* on *cores*; raises RuntimeError with the end of its output when it does not come up."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="wings-bench-") as name:
        directory = Path(name)
        launch = variant.launch(directory, port, engine_port)
        for file, text in launch.files.items():
            (directory / file).write_text(text)
        output = directory / "output.log"
        with output.open("wb") as log, on_cores(cores):
            started = time.monotonic()
            process = subprocess.Popen(
                launch.argv, cwd=directory, env=_environment(launch), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            yield _started(launch, process, port, started)
        except Exception as error:
            error.add_note(f"the end of the output of {variant.name}:\n{output.read_text(errors='replace')[-2000:]}")
            raise
        finally:
            _stop(process)


def _environment(launch: Launch) -> dict[str, str]:
    # Nothing of the caller's set-up reaches a proxy, least of all a WINGS_ variable.
    return {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", **launch.env}


def _started(launch: Launch, process: subprocess.Popen[bytes], port: int, started: float) -> Proxy:
    listen_seconds = None
    if launch.listening_path is not None:
        listen_seconds = _wait_for(launch.listening_path, process, port, started)
    start_seconds = _wait_for("/v1/models", process, port, started)
    pids = (process.pid, *_descendants(process.pid))
    start_cpu_seconds = sum(map(_cpu_seconds, pids))
    time.sleep(_SETTLE_SECONDS)
    return Proxy(
        port,
        pids,
        start_seconds if listen_seconds is None else listen_seconds,
        start_seconds,
        start_cpu_seconds,
        sum(map(_resident_bytes, pids)),
    )


def _wait_for(path: str, process: subprocess.Popen[bytes], port: int, started: float) -> float:
    """Ask for *path* until it answers 200; return the seconds since *started*."""
    answer = "no connection"
    while time.monotonic() - started < _START_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {API_KEY}"})
            status = connection.getresponse().status
        except OSError:
            pass
        else:
            if status == 200:
                return time.monotonic() - started
            answer = f"status {status}"
        finally:
            connection.close()
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"no 200 from {path} within {_START_SECONDS:g} s: {answer}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in _descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # `pid (name) state parent …`; a name may hold anything.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [further for child in found for further in _descendants(child)]


def _cpu_seconds(pid: int) -> float:
    # The process's own CPU clock (clock_getcpuclockid(3)), to the nanosecond; /proc/PID/stat counts in 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def import_metrics(cores: frozenset[int]) -> dict[Metric, float]:
    """Return what the bare imports of our dependencies take: the floor of our own start."""
    with on_cores(cores):
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _IMPORT_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
        )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.monotonic() - started
        metrics = {
            Metric.LISTEN_MS: seconds * 1e3,
            Metric.START_MS: seconds * 1e3,
            Metric.START_CPU_MS: _cpu_seconds(process.pid) * 1e3,
            Metric.IDLE_MIB: _resident_bytes(process.pid) / _MIB,
        }
        process.kill()
    return metrics


def start_metrics(proxy: Proxy) -> dict[Metric, float]:
    """Return what starting a proxy took."""
    return {
        Metric.LISTEN_MS: proxy.listen_seconds * 1e3,
        Metric.START_MS: proxy.start_seconds * 1e3,
        Metric.START_CPU_MS: proxy.start_cpu_seconds * 1e3,
        Metric.IDLE_MIB: proxy.idle_bytes / _MIB,
    }


def load_metrics(workload: Workload, load: Load) -> dict[Metric, float]:
    """Return the figures of one load; CPU time is per event where there are events, else per answer."""
    units = load["events"] if workload.events else load["answers"]
    metrics = {
        Metric.PER_SECOND: units / load["seconds"],
        Metric.CPU_SHARE: load["cpu_seconds"] / load["seconds"],
        Metric.TOOLS_SHARE: load["tool_cpu_seconds"] / load["seconds"],
        Metric.RESIDENT_MIB: load["resident_bytes"] / _MIB,
        Metric.FAILED: load["failed"],
    }
    if units:
        metrics[Metric.CPU_US] = load["cpu_seconds"] * 1e6 / units
    for name, p50, p99 in (
        ("latency", Metric.LATENCY_P50_US, Metric.LATENCY_P99_US),
        ("first_byte", Metric.FIRST_BYTE_P50_US, Metric.FIRST_BYTE_P99_US),
        ("lag", Metric.LAG_P50_US, Metric.LAG_P99_US),
    ):
        times = {"latency": load["latency"], "first_byte": load["first_byte"], "lag": load["lag"]}[name]
        if times is not None:
            metrics[p50], metrics[p99] = times["p50"], times["p99"]
    return metrics


def run_rounds(
    results: Results,
    tools: Tools,
    variants: Sequence[Variant],
    workloads: Sequence[Workload],
    cores: frozenset[int],
    rounds: int,
    say: Callable[[str], None],
) -> None:
    """Measure everything *rounds* times, the proxies in turn, so that what disturbs the machine disturbs them all."""
    for number in range(rounds):
        results.add_round()
        results.note_load(os.getloadavg()[0])
        # Each round begins with another proxy: none is always measured after the same one.
        turn = number % len(variants)
        order = [*variants[turn:], *variants[:turn]]
        for workload in workloads:
            say(f"round {number + 1} of {rounds}: {workload.title}")
            results.add(IMPORTS, START, import_metrics(cores))
            direct = tools.load(workload, tools.engine_port, [tools.engine_pid]) if number == 0 else None
            if direct is not None:
                results.add(DIRECT, workload.name, load_metrics(workload, direct))
            for variant in order:
                if not (variant.complete or workload.bare_too):
                    continue
                with running(variant, tools.engine_port, cores) as proxy:
                    results.add(variant.name, START, start_metrics(proxy))
                    load = tools.load(workload, proxy.port, proxy.pids)
                results.add(variant.name, workload.name, load_metrics(workload, load))
                if load["failed"]:
                    results.failures.append(f"{variant.name}, {workload.name}: {load['first_failure']}")
                if not load["answers"] and not load["events"]:
                    results.failures.append(f"{variant.name}, {workload.name}: nothing came in the counted window")
