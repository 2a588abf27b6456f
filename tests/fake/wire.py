"""Bytes in and out: one connection of a client, and the record of each request that came over it."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

# Of a body that much is kept once it is answered; the hash covers all of it.
KEPT_BYTES = 1024 * 1024
_HEAD_BYTES = 256 * 1024


class Outcome(enum.StrEnum):
    """How an answer ended."""

    OPEN = "open"
    DONE = "done"
    LEFT = "left"  # the peer closed first
    ABORTED = "aborted"  # the engine ended it: SIGTERM, dead core
    FAULT = "fault"  # a switch struck


@dataclass(slots=True, eq=False)
class Request:
    """One request as it arrived; all times are of `time.monotonic()`."""

    number: int
    connection: int
    peer: tuple[str, int]
    # From the first byte of the request line to the empty line, as received.
    head: bytes
    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    head_at: float
    body: bytes = b""
    body_bytes: int = 0
    body_sha256: str = ""
    body_at: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    status: int | None = None
    # Content events (tokens) written of a stream.
    events: int = 0
    outcome: Outcome = Outcome.OPEN

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """Return the value of the first header of that name, or None."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    def as_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "connection": self.connection,
            "method": self.method,
            "target": self.target,
            "head": self.head.decode("latin-1"),
            "body": self.body.decode("utf-8", "replace"),
            "body_bytes": self.body_bytes,
            "body_sha256": self.body_sha256,
            "head_at": self.head_at,
            "body_at": self.body_at,
            "answered_at": self.answered_at,
            "ended_at": self.ended_at,
            "status": self.status,
            "events": self.events,
            "outcome": self.outcome,
        }


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: when it came, when and by whom it was closed."""

    number: int
    address: tuple[str, int]
    opened_at: float = field(default_factory=time.monotonic)
    closed_at: float | None = None
    # True: the client ended it (FIN, RST or half-close), before the engine did.
    closed_by_peer: bool = False
    requests: int = 0

    def as_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "address": list(self.address),
            "opened_at": self.opened_at,
            "closed_at": self.closed_at,
            "closed_by_peer": self.closed_by_peer,
            "requests": self.requests,
        }


class MalformedError(Exception):
    """The peer sent what is no HTTP/1 request."""


class Connection(asyncio.Protocol):
    """A connection and the task that serves it; as uvicorn does, a peer that half-closes has left."""

    def __init__(self, serve: Callable[[Connection], Coroutine[Any, Any, None]], changed: Callable[[], None]) -> None:
        self._serve = serve
        self._changed = changed
        self._buffer = bytearray()
        self._more: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self.peer = Peer(0, ("", 0))
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername") or ("", 0)
        self.peer.address = (address[0], address[1])
        self.task = asyncio.get_running_loop().create_task(self._serve(self), name="fake-engine-connection")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._wake()

    def eof_received(self) -> bool:
        self.peer.closed_by_peer = not self._closing
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer.closed_at = time.monotonic()
        self.peer.closed_by_peer = self.peer.closed_by_peer or not self._closing
        self._writable.set()
        if self.peer.closed_by_peer:
            self.task.cancel()
        self._wake()
        self._changed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    @property
    def lost(self) -> bool:
        return self.peer.closed_at is not None

    async def _read(self) -> None:
        """Wait for further bytes; ConnectionError when there will be none."""
        if self.lost or self._closing:
            raise ConnectionError
        self._more = asyncio.get_running_loop().create_future()
        await self._more
        if self.lost:
            raise ConnectionError

    async def read_head(self, number: int, idle_seconds: float) -> Request | None:
        """Return the next request, body still unread; None when the peer was idle too long."""
        try:
            async with asyncio.timeout(idle_seconds):
                while not self._buffer:
                    await self._read()
        except TimeoutError:
            return None
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_BYTES:
                raise MalformedError
            await self._read()
        head = bytes(self._buffer[: end + 4])
        del self._buffer[: end + 4]
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        try:
            method, target, version = first.split(" ")
            headers = tuple((name.lower(), value.strip()) for name, value in (line.split(":", 1) for line in lines))
        except ValueError as error:
            raise MalformedError from error
        self.peer.requests += 1
        return Request(
            number, self.peer.number, self.peer.address, head, method, target, version, headers, time.monotonic()
        )

    async def read_body(self, request: Request) -> None:
        """Read the body into the record; answers `Expect: 100-continue` first, as uvicorn does."""
        if (request.header("expect") or "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts: list[bytes] = []
        if "chunked" in (request.header("transfer-encoding") or "").lower():
            while size := int((await self._line()).split(b";")[0], 16):
                await self._take(request, parts, size)
                await self._line()
            while await self._line():
                pass
        else:
            await self._take(request, parts, int(request.header("content-length") or 0))
        request.body = b"".join(parts)
        request.body_sha256 = hashlib.sha256(request.body).hexdigest()
        request.body_at = time.monotonic()

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._read()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _take(self, request: Request, parts: list[bytes], size: int) -> None:
        while size:
            while not self._buffer:
                await self._read()
            parts.append(bytes(self._buffer[:size]))
            del self._buffer[: len(parts[-1])]
            size -= len(parts[-1])
            request.body_bytes += len(parts[-1])

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written."""
        await self._writable.wait()

    def close(self) -> None:
        """FIN, after what was written."""
        self._closing = True
        self.transport.close()

    async def linger(self, seconds: float = 1.0) -> None:
        """FIN, then let the peer finish sending: closing over unread bytes would be an RST that eats the answer."""
        self._closing = True
        self.transport.write_eof()
        self._buffer.clear()
        try:
            async with asyncio.timeout(seconds):
                while not self.lost:
                    self._more = asyncio.get_running_loop().create_future()
                    await self._more
                    self._buffer.clear()
        except TimeoutError:
            return

    def reset(self) -> None:
        """RST; what the peer has not yet read is lost."""
        self._closing = True
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.lost:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
