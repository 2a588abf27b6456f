"""A hundred thousand requests and ten thousand streams later the sidecar holds what it held before.

`WINGS_SOAK_ROUNDS=20 make soak` goes round as often. One round tells of 100 bytes lost with a request.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.tools import Load, Tools, running_tools
from tests.bench.workloads import Workload
from tests.sidecar import sidecar

ROUNDS = int(os.environ.get("WINGS_SOAK_ROUNDS", "1"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load tools are compiled: needs cc"),
    pytest.mark.timeout(300 * ROUNDS),
]

REQUESTS = Workload(name="requests", title="", connections=32, seconds=2.0, warmup_seconds=0.0)
STREAMS = Workload(name="streams", title="", connections=64, seconds=2.0, warmup_seconds=0.0, events=20)
UPLOADS = Workload(name="uploads", title="", connections=4, seconds=0.5, warmup_seconds=0.0, upload_bytes=500_000)
# Clients that leave inside their streams, so that nothing of those stays either.
PACED = Workload(
    name="paced", title="", connections=64, seconds=0.5, warmup_seconds=0.0, events=1000, interval_us=5_000
)
GROWTH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    resident_bytes: int
    tasks: list[str]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def held(at_rest: int) -> Held:
    """Return what is held once the load's connections and those pooled for it are gone."""
    async with asyncio.timeout(100):
        while descriptors() > at_rest:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.1)
    gc.collect()
    return Held(resident_bytes(), sorted(task.get_name() for task in asyncio.all_tasks()))


async def test_what_is_held_does_not_grow(tmp_path: Path) -> None:
    with running_tools(tmp_path / "tools", frozenset(os.sched_getaffinity(0))) as tools:
        volume = tmp_path / "volume"
        volume.mkdir()
        async with sidecar(volume, tools.engine_port, WINGS_ACCESS_LOG="false") as running:
            await running.health(lambda body: body["state"] == "ready")
            at_rest = descriptors() + 2  # the probe's connection comes and goes

            async def put(workload: Workload, answers: int) -> None:
                done = 0
                while done < answers:
                    load = await asyncio.to_thread(_load, tools, workload, running.port)
                    assert (load["failed"], load["first_failure"]) == (0, "")
                    done += load["answers"]

            for workload, answers in ((REQUESTS, 20_000), (STREAMS, 3_000), (UPLOADS, 50), (PACED, 0)):
                await put(workload, answers)
            before = await held(at_rest)
            for _ in range(ROUNDS):
                await put(REQUESTS, 100_000)
                await put(STREAMS, 10_000)
                await put(UPLOADS, 100)
                await asyncio.to_thread(_load, tools, PACED, running.port)
            after = await held(at_rest)
    assert len(after.tasks) <= len(before.tasks), (before, after)
    assert after.resident_bytes - before.resident_bytes < GROWTH_BYTES * ROUNDS**0.5, (before, after)


def _load(tools: Tools, workload: Workload, port: int) -> Load:
    return tools.load(workload, port, [os.getpid()])
