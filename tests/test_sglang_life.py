"""SGLang as captured, timing included: a load told by its log, and a /health of more than a second.

The lines are those of `tests/data/sglang-0.5.23/start_serve_drain.log`; the seconds are from the same run, whose output
was stamped as it came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import Flavour, StartEngine
from tests.ports import free_port
from tests.sidecar import sidecar

CAPTURE = Path(__file__).parent / "data" / "sglang-0.5.23" / "start_serve_drain.log"
LOAD = [
    (b"server_args=", "engine_init"),
    (b"Load weight begin", "weights"),
    (b"KV Cache is allocated", "kv_cache"),
    (b"Started server process", "server"),
    (b"Uvicorn running on", "warm_up"),
]
# It listened 130.19 s after the start, and said 503 until it was "fired up and ready to roll" at 132.23 s.
WARM_UP_SECONDS = 2.04
# 1.0 s and 1.2 s were seen: its /health generates a token, and looks once a second whether that came.
HEALTH_SECONDS = 1.2


def line_with(words: bytes) -> bytes:
    return next(line for line in CAPTURE.read_bytes().splitlines(keepends=True) if words in line)


@pytest.mark.slow
async def test_a_load_is_told_phase_by_phase_and_a_503_is_part_of_it(fake_engine: StartEngine, tmp_path: Path) -> None:
    port, seen = free_port(), list[str]()

    def tells(phase: str) -> Callable[[dict[str, Any]], bool]:
        return lambda body: (body["progress"] or {}).get("phase") == phase

    async with sidecar(tmp_path, port, ENGINE_TYPE="sglang") as running:
        running.status("running")
        await running.health(lambda body: body["state"] == "loading")
        with (tmp_path / "engine.log").open("ab", buffering=0) as log:
            for words, phase in LOAD:
                log.write(line_with(words))
                seen.append((await running.health(tells(phase)))["state"])
        await fake_engine(
            flavour=Flavour.SGLANG, port=port, loading_seconds=WARM_UP_SECONDS, health_seconds=HEALTH_SECONDS
        )
        began = time.monotonic()
        while (body := await running.health(lambda _: True))["state"] != "ready":
            seen.append(body["state"])
            assert time.monotonic() - began < 30
            await asyncio.sleep(0.05)
        assert set(seen) == {"loading"}
        assert time.monotonic() - began >= WARM_UP_SECONDS
        assert (await running.get("/livez/engine"))[0] == 200


@pytest.mark.slow
async def test_a_health_page_that_takes_over_a_second_is_waited_for(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(flavour=Flavour.SGLANG, health_seconds=HEALTH_SECONDS)
    # What would do for vLLM.
    environ = {"ENGINE_TYPE": "sglang", "WINGS_PROBE_TIMEOUT_SECONDS": "0.5", "WINGS_PROBE_FAILURES": "1"}
    async with sidecar(tmp_path, engine.port, **environ) as running:
        running.status("running")
        since = (await running.health(lambda body: body["state"] == "ready" and body["run"] is not None))[
            "since_seconds"
        ]
        began = time.monotonic()
        # Four probes and more.
        while time.monotonic() - began < 4 * HEALTH_SECONDS + 1:
            body = await running.health(lambda _: True)
            assert (body["state"], body["last_probe"]["outcome"]) == ("ready", "healthy")
            assert body["since_seconds"] >= since
            since = body["since_seconds"]
            await asyncio.sleep(0.1)
