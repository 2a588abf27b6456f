"""Connections to the engine, and the pool that keeps them between requests.

A connection belongs either to one exchange or to the pool, never to both; whatever the engine sends on one
that lies in the pool ends it, so no byte of one answer can reach another client.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections import deque
from typing import Protocol, cast

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.exchange import UpstreamFault

LOOPBACK = "127.0.0.1"
# Of an answer nobody takes off, the kernel keeps no more than about twice this (socket(7), SO_RCVBUF). By itself it
# goes up to megabytes, in the container's memory, and when many clients read on at once one turn of the loop moves it.
_UNREAD_BYTES = 64 * 1024


class UpstreamError(Exception):
    """The engine, or the way to it, failed; `fault` says how."""

    def __init__(self, fault: UpstreamFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault

    @property
    def api_error(self) -> ApiError:
        """What the client is told about it."""
        fault = self.fault
        if fault in {UpstreamFault.CONNECT_REFUSED, UpstreamFault.CONNECT_TIMEOUT, UpstreamFault.CONNECT_FAILED}:
            return ApiError(503, ErrorCode.ENGINE_UNREACHABLE, "the engine cannot be reached", retry_after=1)
        if fault in {UpstreamFault.FIRST_BYTE_TIMEOUT, UpstreamFault.IDLE_TIMEOUT}:
            return ApiError(504, ErrorCode.UPSTREAM_TIMEOUT, str(self))
        if fault is UpstreamFault.CUT:
            return ApiError(503, ErrorCode.DRAINING, "this server is shutting down", retry_after=1, close=True)
        return ApiError(502, ErrorCode.UPSTREAM_ERROR, f"the engine failed: {self}")


class Receiver(Protocol):
    """The exchange a connection serves; called from the event loop's callbacks."""

    def data_received(self, data: bytes) -> None:
        """Take bytes of the answer."""

    def connection_ended(self, *, orderly: bool, unread: bool) -> None:
        """Learn that no more bytes come.

        *orderly*: by an end of file. *unread*: the engine provably did not read all we sent, see `Connection`.
        """


class Connection(asyncio.Protocol):
    """One connection to the engine.

    How far an engine came that closes without an answer: an end of file *and then* a reset (Linux: EPIPE) prove that it
    had closed its socket before all of the request came, so it did not read it to its end. An end of file alone proves
    nothing: it may have read, run and died. Nor does a reset alone (ECONNRESET): it comes from a socket closed over
    unread bytes, but also from one that was made to abort (SO_LINGER) after everything was read.
    """

    __slots__ = ("_drain_waiter", "_poll", "_receiver", "_socket", "_transport", "epoch", "idle_since", "open", "uses")

    def __init__(self, sock: socket.socket, epoch: int) -> None:
        self._socket = sock
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._poll: select.poll | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self.open = True
        self.epoch = epoch
        """Which run of the engine it belongs to; the pool takes back those of the present one only."""
        self.uses = 0
        """Exchanges begun on it; more than one means it came from the pool."""
        self.idle_since = 0.0
        """Loop time at which it was given back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio.Protocol)."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the exchange; without one they are stray, and the end of the connection."""
        if self._receiver is not None:
            self._receiver.data_received(data)
        else:
            self.abort()

    def eof_received(self) -> bool:
        """The engine closed its side; on Linux that is reported first, and a reset waits in SO_ERROR."""
        try:
            unread = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
        except OSError:
            unread = False
        self._ended(orderly=True, unread=unread)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio.Protocol)."""
        if exc is not None:
            self._rescue()
        # EPIPE, unlike ECONNRESET, says that the end of file had come before the reset.
        after_the_end = isinstance(exc, BrokenPipeError)
        self._ended(orderly=after_the_end, unread=after_the_end)

    def _ended(self, *, orderly: bool, unread: bool) -> None:
        self.open = False
        if (waiter := self._drain_waiter) is not None and not waiter.done():
            waiter.set_result(None)
        if (receiver := self._receiver) is not None:
            self._receiver = None
            receiver.connection_ended(orderly=orderly, unread=unread)

    def _rescue(self) -> None:
        """Read what the engine said before a write failed.

        An engine that refuses a body answers, closes, and resets when more of the body comes. The failed write
        takes the transport down before it has read, yet the answer lies in the socket's buffer.
        """
        while (receiver := self._receiver) is not None:
            try:
                data = os.read(self._socket.fileno(), 65536)
            except OSError:
                return
            if not data:
                return
            receiver.data_received(data)

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer; asks the kernel, the loop may be behind."""
        if not self.open:
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return not self._poll.poll(0)

    def begin(self, receiver: Receiver) -> None:
        """Start an exchange: from here the engine's bytes are *receiver*'s."""
        self._receiver = receiver
        self.uses += 1

    def release(self) -> None:
        """End the exchange; bytes from here on are stray."""
        self._receiver = None

    def write(self, data: bytes) -> None:
        """Send *data*; on a connection that has ended it goes nowhere, the receiver was told."""
        if self.open and self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Leave the engine's bytes in the kernel until `resume_reading`."""
        if self.open and self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.open and self._transport is not None:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """The engine does not read as fast as we send (asyncio.Protocol)."""
        self._drain_waiter = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """There is room again (asyncio.Protocol)."""
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def writing_paused(self) -> bool:
        """Whether more than the transport's high-water mark waits to be sent."""
        return self.open and self._drain_waiter is not None

    async def drain(self) -> None:
        """Wait until the engine took what was written, or the connection ended."""
        if self.writing_paused and self._drain_waiter is not None:
            await asyncio.shield(self._drain_waiter)

    def abort(self) -> None:
        """Close at once; the engine sees the client gone."""
        self.open = False
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Connections to 127.0.0.1:port, the last one given back used first.

    `take` never waits and never limits: a request without a free connection opens one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        port: int,
        *,
        connect_timeout_seconds: float,
        idle_seconds: float,
    ) -> None:
        """Keep idle connections for *idle_seconds*, less than the engine does (uvicorn: 5 s); 0 keeps none."""
        self.loop = loop
        self._address = (LOOPBACK, port)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle_seconds = idle_seconds
        self._idle: deque[Connection] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self._epoch = 0
        self._closed = False
        self.opened = 0

    @property
    def idle(self) -> int:
        """How many connections wait in the pool."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """Return a connection that is still good, or None."""
        while self._idle:
            connection = self._idle.pop()
            if self.loop.time() - connection.idle_since < self._idle_seconds and connection.is_quiet():
                return connection
            connection.abort()
        return None

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """End an exchange; *reusable*: request and answer were both complete and nothing followed."""
        connection.release()
        reusable = reusable and self._idle_seconds > 0 and not self._closed
        if not reusable or not connection.open or connection.epoch != self._epoch:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        if self._reaper is None:
            self._reaper = self.loop.call_later(self._idle_seconds, self._reap)

    def _reap(self) -> None:
        """Close what lay idle too long; the oldest are on the left."""
        self._reaper = None
        now = self.loop.time()
        while self._idle and (not self._idle[0].open or now - self._idle[0].idle_since >= self._idle_seconds - 0.001):
            self._idle.popleft().abort()
        if self._idle:
            delay = self._idle[0].idle_since + self._idle_seconds - now
            self._reaper = self.loop.call_later(max(delay, 0.1), self._reap)

    def drop_idle(self) -> None:
        """Close every idle connection, and those in use when they come back: the engine is another run."""
        self._epoch += 1
        while self._idle:
            self._idle.pop().abort()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None

    def close(self) -> None:
        """Keep no connection from here on."""
        self._closed = True
        self.drop_idle()

    async def connect(self) -> Connection:
        """Open a connection; raises UpstreamError when the engine refuses or does not answer in time."""
        epoch = self._epoch
        sock: socket.socket | None = None
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD_BYTES)
            if not _connected_at_once(sock, self._address):
                async with asyncio.timeout(self._connect_timeout_seconds):
                    await self.loop.sock_connect(sock, self._address)
            connection = Connection(sock, epoch)
            await self.loop.create_connection(lambda: connection, sock=sock)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise _connect_error(error, self._connect_timeout_seconds) from error
            raise
        self.opened += 1
        return connection


def _connected_at_once(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Connect over loopback, without waiting; False if that takes longer, because the listener's backlog is full.

    The handshake is over when the first call lets go of the socket, yet only a second one can say so.
    """
    sock.connect_ex(address)
    error = sock.connect_ex(address)
    if error in {0, errno.EISCONN}:
        return True
    if error in {errno.EINPROGRESS, errno.EALREADY}:
        return False
    raise OSError(error, os.strerror(error))


def _connect_error(error: OSError, timeout_seconds: float) -> UpstreamError:
    if isinstance(error, TimeoutError):
        return UpstreamError(UpstreamFault.CONNECT_TIMEOUT, f"no connection within {timeout_seconds:g} s")
    refused = error.errno == errno.ECONNREFUSED
    fault = UpstreamFault.CONNECT_REFUSED if refused else UpstreamFault.CONNECT_FAILED
    return UpstreamError(fault, error.strerror or str(error))
