"""A real Prometheus on a loopback port, with its rules and everything it stores in one directory."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.monitoring.files import RULES, program
from tests.ports import free_port

INTERVAL = "1s"
# A run of a minute has no minutes to wait for: an alert fires when its condition held for a second, and a target's
# absence is averaged over seconds. How long each takes is what `alerts.test.yml` tests, with the rules as they are.
_WAITS = re.compile(r"^( +for: )\d+m$|(avg_over_time\(up{[^}]+}\[)\d+m", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server, and its HTTP API."""

    url: str
    session: aiohttp.ClientSession
    started: float

    async def api(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of the API."""
        async with self.session.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            body = await answer.json()
        assert body["status"] == "success", body
        return body["data"]

    async def ever(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of every series that had a number as a value at some time since the start."""
        span = {"start": f"{self.started}", "end": f"{time.time()}", "step": "1"}
        data = await self.api("query_range", query=expression, **span)
        return [
            series["metric"]
            for series in data["result"]
            if any(not math.isnan(float(value)) for _, value in series["values"])
        ]

    async def firing(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the alerts that fire now, by name and severity."""
        alerts = (await self.api("alerts"))["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"]["severity"]): alert
            for alert in alerts
            if alert["state"] == "firing"
        }

    async def until(self, what: str, wanted: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Ask `wanted()` until it is true; return what it returned."""
        deadline = time.monotonic() + seconds
        while not (found := await wanted()):
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
            await asyncio.sleep(0.1)
        return found


@asynccontextmanager
async def prometheus(
    directory: Path, targets: Mapping[str, int], *, path: str = "/metrics", interval: str = INTERVAL
) -> AsyncIterator[Prometheus]:
    """Scrape the *targets*, ports by the name of the pod, until the end of the block; *path* may hold `{pod}`."""
    text = _WAITS.sub(lambda wait: f"{wait[1]}1s" if wait[1] else f"{wait[2]}5s", RULES.read_text("utf-8"))
    (directory / "rules.yml").write_text(text)
    static = [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"namespace": "tests", "pod": pod, "__metrics_path__": path.format(pod=pod)},
        }
        for pod, port in targets.items()
    ]
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "wings-infer", "static_configs": static}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("prometheus"),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        async with aiohttp.ClientSession() as session:
            server = Prometheus(f"http://127.0.0.1:{port}", session, time.time())
            await _ready(server, process, directory / "prometheus.log")
            yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(server: Prometheus, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        if process.returncode is not None or time.monotonic() > deadline:
            raise AssertionError(_told(log))
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with server.session.get(f"{server.url}/-/ready") as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.05)


def _told(log: Path) -> str:
    return f"Prometheus is not there: {log.read_text()}"
