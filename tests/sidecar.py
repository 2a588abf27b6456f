"""A whole sidecar in the test's own loop, ended by a real signal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.ports import free_port
from wings_proxy.config.load import resolve
from wings_proxy.serve import serve

RUN = "00000000-0000-4000-8000-000000000001"
HANG_SECONDS = 40.0
"""Nothing takes that long on any machine: it does not come at all."""


@dataclass
class Sidecar:
    """A running sidecar and a client of it."""

    port: int
    volume: Path
    client: aiohttp.ClientSession
    task: asyncio.Task[int]
    bell: int

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def health(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the body of /health once it is as wanted."""
        body: Any = None
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while True:
                    _, body = await self.get("/health")
                    if wanted(body):
                        return dict(body)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not in {HANG_SECONDS:g} s: {body}") from None

    def status(self, phase: str, *, asked: bool = False, code: int | None = None, run: str = RUN) -> None:
        """Write engine.status as the launch script does."""
        body = {"run": run, "generation": "0" * 12, "phase": phase, "asked": asked, "code": code}
        temporary = self.volume / ".status"
        temporary.write_text(json.dumps({**body, "started": 1, "changed": 1}) + "\n")
        temporary.rename(self.volume / "engine.status")
        os.write(self.bell, b".")


@asynccontextmanager
async def sidecar(volume: Path, engine_port: int, **environ: str) -> AsyncIterator[Sidecar]:
    port = free_port()
    resolved = resolve(
        {
            "MODEL_PATH": "/models/tiny-qwen2",
            "ENGINE_PORT": str(engine_port),
            "WINGS_PORT": str(port),
            "WINGS_HOST": "127.0.0.1",
            "SHARED_VOLUME_PATH": str(volume),
            "WINGS_PROBE_INTERVAL_SECONDS": "0.05",
            "WINGS_QUIET_SECONDS": "0",
            **environ,
        }
    )
    os.mkfifo(volume / "engine.alive")
    bell = os.open(volume / "engine.alive", os.O_RDWR | os.O_NONBLOCK)
    hangup = signal.getsignal(signal.SIGHUP)
    task = asyncio.create_task(serve(resolved, None), name="sidecar")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        running = Sidecar(port, volume, client, task, bell)
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                try:
                    await running.get("/livez")
                    break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.005)
        try:
            yield running
        finally:
            # The sidecar ignores it for good, as a process may; programs that later tests start would inherit that.
            signal.signal(signal.SIGHUP, hangup)
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
                assert await task == 0
            os.close(bell)


async def chat(running: Sidecar, **body: Any) -> list[str]:
    """Stream a chat; return the data of its events."""
    url = f"http://127.0.0.1:{running.port}/v1/chat/completions"
    request = {"model": "/models/tiny-qwen2", "messages": [{"role": "user", "content": "你好"}], "stream": True, **body}
    async with running.client.post(url, json=request) as answer:
        assert answer.status == 200, await answer.text()
        return [line.decode()[6:].strip() async for line in answer.content if line.startswith(b"data: ")]
