"""The load generator and the mock engine: built when their sources change, run on a core of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict, cast

from tests.bench.peers import API_KEY, MissingPeerError
from tests.bench.workloads import Workload

_SOURCES: Final = Path(__file__).parent


class Percentiles(TypedDict):
    """Of one kind of time, µs."""

    p50: float
    p99: float
    max: float


Slice = tuple[float, int, int]
"""Of one slice of the window: CPU seconds of the watched processes, answers, events."""


class Load(TypedDict):
    """What the load generator reports of one run; see the head of loadgen.c."""

    seconds: float
    answers: int
    events: int
    failed: int
    cut: int
    reconnects: int
    cpu_seconds: float
    tool_cpu_seconds: float
    resident_bytes: int
    latency: Percentiles | None
    first_byte: Percentiles | None
    lag: Percentiles | None
    slices: list[Slice]
    first_failure: str


@dataclass(frozen=True, slots=True)
class Tools:
    """The two programs, and the engine running."""

    loadgen: Path
    engine_port: int
    engine_pid: int
    cores: frozenset[int]

    def load(self, workload: Workload, port: int, watched: Sequence[int], slices: int = 0) -> Load:
        """Put *workload* on *port* and return what came of it; the CPU time is that of the *watched* processes.

        With *slices* the window is parted, and the first watched process is told of each by a signal.
        """
        options = {
            "port": port,
            "connections": workload.connections,
            "seconds": workload.seconds,
            "warmup": workload.warmup_seconds,
            "ramp": workload.ramp_seconds,
            "events": workload.events,
            "interval": workload.interval_us,
            "size": workload.answer_bytes,
            "upload": workload.upload_bytes,
            "key": API_KEY,
            "watch": ",".join(map(str, watched)),
            "engine": self.engine_pid,
            "slices": slices,
        }
        argv = [str(self.loadgen), *(f"--{name}={value}" for name, value in options.items())]
        if workload.ticks:
            argv.append("--ticks")
        if workload.paced:
            argv.append("--cut")
        if workload.same:
            argv.append("--same")
        if workload.two_writes:
            argv.append("--split")
        limit = workload.warmup_seconds + workload.seconds + 30
        with on_cores(self.cores), subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            try:
                out, _ = process.communicate(timeout=limit)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise RuntimeError(f"loadgen failed with {process.returncode} on {workload.name}")
        return cast("Load", json.loads(out))


@contextlib.contextmanager
def running_tools(cache: Path, cores: frozenset[int]) -> Iterator[Tools]:
    """Build the tools and run the mock engine; raises `MissingPeerError` without a compiler."""
    loadgen, engine = _built("loadgen", cache), _built("mockengine", cache)
    with on_cores(cores), subprocess.Popen([engine], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Tools(loadgen, int(process.stdout.readline()), process.pid, cores)
        finally:
            process.kill()


@contextlib.contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Run on *cores* inside; what is started there stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _built(name: str, cache: Path) -> Path:
    """Return the program made of `name.c`; it is named after its sources, so a stale one is never run."""
    source, shared = _SOURCES / f"{name}.c", _SOURCES / "wire.h"
    program = cache / f"{name}-{hashlib.sha256(source.read_bytes() + shared.read_bytes()).hexdigest()[:12]}"
    if program.exists():
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingPeerError("cc not found: the load tools are compiled; apt install gcc libc6-dev")
    cache.mkdir(parents=True, exist_ok=True)
    partial = program.with_suffix(".partial")
    subprocess.run([compiler, "-O2", "-Wall", "-o", partial, source], check=True)
    partial.rename(program)
    return program
