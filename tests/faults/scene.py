"""What the tests of the catalogue share: a sidecar to be spoken to in bytes, and its metrics as numbers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fake_engine import FakeEngine, Request, StartEngine
from tests.sidecar import Sidecar, sidecar
from tests.stream_client import to_the_end
from tests.wire import Client, Message

CHAT = b"/v1/chat/completions"
KEYS = "first-key\nsecond-key\n"


async def connect(running: Sidecar, *, receive_buffer: int | None = None) -> Client:
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", running.port))
    return Client(*await asyncio.open_connection(sock=sock))


async def ask(running: Sidecar, sent: bytes) -> Message:
    """Send bytes on a connection of their own; return the answer."""
    client = await connect(running)
    try:
        async with asyncio.timeout(40):
            await client.send(sent)
            return await client.answer(head_request=sent.startswith(b"HEAD"))
    finally:
        client.close()


async def everything(running: Sidecar, sent: bytes) -> bytes:
    """Send bytes; return all that comes until the sidecar closes."""
    client = await connect(running)
    received = b""
    try:
        async with asyncio.timeout(40):
            await client.send(sent)
            while piece := await client.reader.read(65536):
                received += piece
    except ConnectionError:
        pass
    finally:
        client.close()
    return received


async def get(running: Sidecar, target: bytes, *fields: bytes) -> Message:
    lines = b"".join(field + b"\r\n" for field in fields)
    return await ask(running, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n" % (target, lines))


def newest(engine: FakeEngine, path: bytes = CHAT) -> Request:
    """Return the newest request of a path; the sidecar's own come in between, of other paths."""
    return next(request for request in reversed(engine.requests) if request.path == path.decode())


async def metric(running: Sidecar, sample: str) -> float:
    """Return the value of a sample, written as on the page: `name{label="value"}`."""
    status, page = await running.get("/metrics")
    assert status == 200
    for line in page.splitlines():
        if line.startswith(sample + " "):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no sample {sample}")


async def state(running: Sidecar, wanted: str) -> dict[str, Any]:
    return await running.health(lambda body: body["state"] == wanted)


@asynccontextmanager
async def scene(
    fake_engine: StartEngine, volume: Path, *, ready: bool = True, engine: dict[str, Any] | None = None, **environ: str
) -> AsyncIterator[tuple[Sidecar, FakeEngine]]:
    """Run a fake engine and a sidecar in front of it."""
    started = await fake_engine(**(engine or {}))
    async with sidecar(volume, started.port, **environ) as running:
        if ready:
            await state(running, "ready")
        yield running, started


def chat_url(running: Sidecar) -> str:
    return f"http://127.0.0.1:{running.port}/v1/chat/completions"


CHAT_BODY: dict[str, Any] = {"model": "/models/tiny-qwen2", "messages": [{"role": "user", "content": "x"}]}
STREAM: dict[str, Any] = {**CHAT_BODY, "stream": True}


async def stream(running: Sidecar, **body: Any) -> tuple[bytes, bool]:
    """Stream a chat; return what came, and whether it ended as HTTP says a body ends."""
    return await to_the_end(running.port, {**STREAM, **body})
