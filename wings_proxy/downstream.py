"""The client's side of an exchange: the one place that knows aiohttp's server from within.

The answer's bytes go straight to the client's transport, past aiohttp's response classes. What this rests
on, for aiohttp 3.14 (`web_protocol.RequestHandler`), each point held by a test:

- after a handler returned, aiohttp calls `prepare(request)` and `write_eof()` on its response and reads
  `keep_alive`; with no access log it asks for nothing else;
- a handler that returns before the request's body was read gets the rest read over, for `lingering_time`;
- `request.protocol.writing_paused` says that the transport's buffer is full, `request.writer.drain()` waits
  until it is not;
- with `handler_cancellation` the handler is cancelled when the connection is lost;
- a body that stops being HTTP puts an error behind the request into `_messages`, and the body just never ends.
"""

from __future__ import annotations

import socket
import struct

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11

_TCP_ESTABLISHED = 1  # tcpi_state, tcp(7)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class SentResponse(web.StreamResponse):
    """Tells aiohttp that an answer was sent, and whether the connection goes on."""

    def __init__(self, status: int, sent_bytes: int, *, keep_alive: bool) -> None:
        # Not super().__init__(): it makes header and cookie containers for an answer that is already out.
        self._sent = (status, sent_bytes)
        self._goes_on = keep_alive

    @property
    def status(self) -> int:
        """The status that was sent."""
        return self._sent[0]

    @property
    def body_length(self) -> int:
        """Bytes of the body that were sent."""
        return self._sent[1]

    @property
    def keep_alive(self) -> bool:
        """Whether aiohttp may read another request from the connection."""
        return self._goes_on

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send nothing: the head is out."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing: the body is out."""


class Downstream:
    """One request's client."""

    __slots__ = ("_protocol", "_writer", "http10", "keep_alive", "wants_keep_alive_header")

    def __init__(self, request: web.BaseRequest) -> None:
        self._protocol = request.protocol
        self._writer = request.writer
        self.http10 = request.version < HttpVersion11
        self.keep_alive = request.keep_alive
        """Whether the connection goes on after this answer; may be turned off until the head is written."""

    @property
    def is_gone(self) -> bool:
        """Whether the client closed the connection."""
        return self._protocol.transport is None

    @property
    def has_left(self) -> bool:
        """Whether the kernel knows that the client closed; the loop does not hear of it while reading is paused.

        A client that closes with much unsent keeps its end of file behind the bytes nobody takes: that is not seen.
        """
        transport = self._protocol.transport
        if transport is None:
            return True
        sock = transport.get_extra_info("socket")
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED)

    @property
    def body_is_broken(self) -> bool:
        """Whether the request's body, not at its end yet, cannot go on: what follows it was read already."""
        return bool(self._protocol._messages)

    @property
    def connection_field(self) -> bytes | None:
        """The value of the answer's `Connection` field, None if the version's default says it."""
        if not self.keep_alive:
            return b"close"
        return b"keep-alive" if self.http10 else None

    def write(self, data: bytes) -> bool:
        """Send *data*; False if the client's buffer is full now, then `drain` before the next."""
        transport = self._protocol.transport
        if transport is None:
            return True
        transport.write(data)
        return not self._protocol.writing_paused

    @property
    def writing_paused(self) -> bool:
        """Whether the client does not read as fast as the engine sends."""
        return self._protocol.writing_paused and self._protocol.transport is not None

    async def drain(self) -> None:
        """Wait until there is room in the client's buffer."""
        await self._writer.drain()

    def reset(self) -> None:
        """Close at once, with a reset: no reader can take what it has for the whole answer (RFC 9112 §8)."""
        transport = self._protocol.transport
        if transport is None:
            return
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
