"""The client's side of an exchange: the one place that knows aiohttp's server from within.

The answer's bytes go straight to the client's transport, past aiohttp's response classes. What this rests
on, for aiohttp 3.14 (`web_protocol.RequestHandler`), each point held by a test:

- `writing_paused` says that the transport's buffer is full, `transport` is None once the connection is lost;
- a second reason for it not to read may be set and taken back at any time (`_pause_reading_for_buffer`): where it has
  that reason itself, it finds it again with the next bytes;
- a body that stops being HTTP puts an error behind the request into `_messages`, and the body just never ends.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage

_TCP_ESTABLISHED = 1  # tcpi_state, tcp(7)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Close at once, with a reset: no reader can take what it has for the whole answer (RFC 9112 §8)."""
    if (sock := transport.get_extra_info("socket")) is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class Downstream:
    """One request's client."""

    __slots__ = ("_protocol", "extra", "http10", "keep_alive", "offers")

    def __init__(self, protocol: web.RequestHandler, message: RawRequestMessage) -> None:
        self._protocol = protocol
        self.http10 = message.version < HttpVersion11
        self.offers = message.upgrade
        """Whether it offers to go on in another protocol."""
        self.extra = b""
        """Lines of our own for the answer's head."""
        self.keep_alive = not message.should_close
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

    def hold(self) -> None:
        """Read nothing more from the client for now: what it sends stays in the kernel, then with the client."""
        self._protocol._pause_reading_for_buffer()

    def read_on(self) -> None:
        """Read from the client again."""
        self._protocol._resume_reading_for_buffer()

    def write(self, data: bytes) -> None:
        """Send *data*; when that fills the client's buffer, its connection says so."""
        if (transport := self._protocol.transport) is not None:
            transport.write(data)

    @property
    def writing_paused(self) -> bool:
        """Whether the client does not read as fast as the engine sends."""
        return self._protocol.writing_paused and self._protocol.transport is not None

    def reset(self) -> None:
        """Close at once, so that nobody takes what was sent for the whole answer."""
        self.keep_alive = False
        if (transport := self._protocol.transport) is not None:
            reset(transport)
