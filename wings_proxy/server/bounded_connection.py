"""A client's connection within bounds: deadlines for heads, idle times and farewells, a head's size, a seat in the cap.

No timer runs while a request is being answered: the byte path has deadlines of its own. What this rests on, for
aiohttp 3.14, each point held by a test:

- every parsed request, and every parser's error, raises `_request_count`;
- the server's `connection_made` and `connection_lost` are told of every connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.downstream import reset
from wings_proxy.proxy.headers import error_response as error_bytes
from wings_proxy.proxy.headers import request_id
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.server.connection_cap import ConnectionCap
from wings_proxy.server.head_budget import HeadBudget
from wings_proxy.server.paced_connection import NotHttp, PacedConnection

_log = logging.getLogger(__name__)

LINGER_SECONDS: Final = 2.0
"""How long what comes behind the last answer is read over: closing over unread bytes would reset the answer away
(RFC 9112 §9.6)."""

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")

OriginLines = Callable[[str | None], bytes]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of each connection; seconds and bytes."""

    head_seconds: float = 30.0
    """For a request's head: from its first byte, and for the first one from the connection's beginning."""
    head_bytes: int = 64 * 1024
    """Of a head that has not ended yet. aiohttp's own bounds, of lines and their number, would let it keep 2 MiB."""
    all_heads_bytes: int = 16 * 1024 * 1024
    """Of all such heads together."""
    farewell_seconds: float = 60.0
    """How long a closed connection may keep the bytes its client does not read."""


class BoundedConnection(PacedConnection):
    """Cut when its head is late or too long, or when its client does not let go of it."""

    __slots__ = ("_broken", "_cap", "_farewell_timer", "_head_bytes", "_head_timer", "_raw", "_untaken")

    def __init__(self, manager: BoundedServer, **kwargs: Any) -> None:
        super().__init__(manager, pace=manager.pace, **kwargs)
        self._cap = manager.cap
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._broken = False
        """Whether what came is not HTTP, or was refused: nothing behind it is parsed."""
        self._raw: asyncio.Transport | None = None
        """The transport, also while it is closing."""
        self._farewell_timer: asyncio.TimerHandle | None = None
        self._untaken = 0
        """Bytes of an answer that its client, idle since, had not taken when last looked at."""

    @property
    def _server(self) -> BoundedServer:
        assert isinstance(self._manager, BoundedServer)
        return self._manager

    # ---- heads

    def begun(self, transport: asyncio.Transport) -> None:
        """Expect the first request; told by the server."""
        self._raw = transport
        self._head_timer = self._loop.call_later(self._server.bounds.head_seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Parse, and watch over what is no whole request yet."""
        if self._broken:
            return  # aiohttp would parse on, and make an error of every piece until the first one is answered
        before, inside_body = self._request_count, self.inside_body
        super().data_received(data)
        self._drop_quotation()
        if self._manager is None:
            return
        if self._request_count != before:
            self._stop_head_timer()
            self._cap.busy(self)
        elif data and not inside_body:
            self._head_grew(len(data))

    def _head_grew(self, size: int) -> None:
        """Watch over a head; nobody is kept waiting by one that comes while a request before it is answered."""
        server = self._server
        self._head_bytes += size
        if self._head_bytes > server.bounds.head_bytes:
            self._refuse_head(ApiError(400, ErrorCode.INVALID_REQUEST, "the request's head is too long", close=True))
            return
        if self._head_timer is None and (self._cap.is_idle(self) or self._cap.probes_only(self)):
            self._head_timer = self._loop.call_later(server.bounds.head_seconds, self._head_is_late)
        for connection in server.heads.grow(self, size):
            connection._refuse_head(
                ApiError(503, ErrorCode.OVERLOADED, "too many unfinished requests", retry_after=1, close=True)
            )

    def is_of_head(self, data: bytes, begins: bool) -> bool:  # noqa: FBT001
        """Whether all of it belongs to a head that does not end in it; *begins*: it is the first of it."""
        return (begins or self._head_bytes > 0) and _BLANK_LINE.search(self._tail + data) is None

    def _drop_quotation(self) -> None:
        """Keep of a parser's error that there was one.

        It quotes all that had come, and its traceback leads in a circle to itself: a megabyte that is garbage until
        the collector comes, which is seldom (`serve`).
        """
        if not self._messages or not isinstance(self._messages[-1][0], NotHttp):
            return
        self._broken = True
        for place, (error, _) in enumerate(self._messages):  # two, of what was parsed again behind a declined offer
            if isinstance(error, NotHttp) and isinstance(error.exc, HttpProcessingError):
                error.exc.__traceback__ = error.exc.__context__ = error.exc.__cause__ = None
                self._messages[place] = (NotHttp(error.status, ValueError(type(error.exc).__name__), ""), EMPTY_PAYLOAD)

    def _stop_head_timer(self) -> None:
        if self._head_bytes:
            self._head_bytes = 0
            self._server.heads.done(self)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        seconds = self._server.bounds.head_seconds
        message = f"the request's head did not come within {seconds:g} s"
        self._refuse_head(ApiError(408, ErrorCode.REQUEST_TIMEOUT, message, close=True))

    def _refuse_head(self, error: ApiError) -> None:
        """Answer a head that has not ended, in place of what it was to be; not into another request's answer."""
        server, transport, begun = self._server, self.transport, self._head_bytes
        server.on_refusal(error.code)
        self._stop_head_timer()
        if transport is None:
            return
        if not self.is_idle:
            reset(transport)
            return
        # To a client that has not begun, an answer would pass for that to its first request.
        if begun:
            transport.write(error_bytes(error, request_id=request_id(None), head_request=False, connection=b"close"))
            self.linger()
        else:
            self._end()

    def say_no_more(self) -> None:
        """Close our side, keep nothing, and read over what still comes; the client's end is the connection's."""
        self.close()
        self._broken = True
        self._parser, self._unparsed = None, b""
        self._messages.clear()
        self._cap.idle(self)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()

    def linger(self) -> None:
        """Say no more, and close when the client does, or after a while."""
        self.say_no_more()
        self._stop_head_timer()
        self._head_timer = self._loop.call_later(LINGER_SECONDS, self._end)

    def _end(self) -> None:
        """Close, now that nothing more is said."""
        self.force_close()
        self.bound_farewell()

    # ---- idle time

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        raise NotImplementedError

    def wait_for_request(self) -> None:
        """Let the time begin that the connection may lie idle."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None and self._keepalive_timeout > 0:
            self._look_again()

    def _look_again(self) -> None:
        now = self._loop.time()
        at = min(max(self._next_keepalive_close_time, now), now + self._server.bounds.farewell_seconds)
        self._keepalive_handle = self._loop.call_at(at, self._process_keepalive)

    def _process_keepalive(self) -> None:
        """Close a connection that lay idle too long, or whose client takes nothing of an answer that fits its buffer.

        Called now and then; most times nothing is due.
        """
        self._keepalive_handle = None
        if self._force_close or self.transport is None:
            return
        idle = self.is_idle
        untaken, self._untaken = self._untaken, self.transport.get_write_buffer_size() if idle else 0
        if idle and self._loop.time() >= self._next_keepalive_close_time:
            self._end()
        elif untaken and untaken == self._untaken:
            reset(self.transport)
        elif idle:
            self._look_again()

    # ---- ends

    async def start(self) -> None:
        """Take turns until the connection's end."""
        try:
            await super().start()
        finally:
            self.bound_farewell()

    def bound_farewell(self) -> None:
        """See to it that a closed connection ends although its client does not read what it was sent.

        A transport that was closed waits for its buffer to be empty, for ever; its descriptor would never come back.
        """
        raw = self._raw
        if self._farewell_timer is None and raw is not None and raw.is_closing() and raw.get_write_buffer_size():
            self._farewell_timer = self._loop.call_later(self._server.bounds.farewell_seconds, reset, raw)

    @property
    def is_there(self) -> bool:
        """Whether the connection, perhaps closed by us, has not ended: its client has not taken all it was sent."""
        return self._raw is not None

    def give_up(self) -> None:
        """End a connection that is closed although its client has not taken all."""
        if self._raw is not None:
            reset(self._raw)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the deadlines."""
        self._stop_head_timer()
        if self._farewell_timer is not None:
            self._farewell_timer.cancel()
        self._raw = None
        super().connection_lost(exc)


class BoundedServer(web.Server):
    """Makes the connections, counts them, and closes what is too many."""

    def __init__(
        self,
        *args: Any,
        bounds: Bounds,
        most: int,
        on_refusal: Callable[[ErrorCode], None],
        answer: Callable[[ApiError], web.StreamResponse],
        pace: UploadPace,
        origin_lines: OriginLines | None = None,
        patience: Callable[[], float] = float,
        **kwargs: Any,
    ) -> None:
        """*patience*: how many seconds clients have, at the end, to take what they were sent."""
        super().__init__(*args, **kwargs)
        self.bounds = bounds
        self.heads: HeadBudget[BoundedConnection] = HeadBudget(bounds.all_heads_bytes)
        self._patience = patience
        self._leaving: set[web.RequestHandler] = set()
        self._all_left = asyncio.Event()
        self.cap: ConnectionCap[web.RequestHandler] = ConnectionCap(most)
        self.on_refusal = on_refusal
        self.answer = answer
        self.pace = pace
        self.origin_lines = origin_lines

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Give the connection its seat."""
        super().connection_made(handler, transport)
        assert isinstance(handler, BoundedConnection)
        handler.begun(transport)
        if (leaving := self.cap.admit(handler)) is not None:
            assert isinstance(leaving, BoundedConnection)
            leaving._end()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Take the seat back."""
        super().connection_lost(handler, exc)
        self.cap.lost(handler)
        self._leaving.discard(handler)
        if not self._leaving:
            self._all_left.set()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in aiohttp
        """Close every connection, and wait until their clients have taken what they were sent.

        An answer is out when it is in our buffers. These end with the loop, and a client that reads slowly would find
        its answer cut: by a clean end, where nothing else says how long it is.
        """
        connections = tuple(self.connections)
        await super().shutdown(timeout)
        self._leaving = {each for each in connections if isinstance(each, BoundedConnection) and each.is_there}
        self._all_left.clear()
        if not self._leaving:
            return
        try:
            async with asyncio.timeout(self._patience()):
                await self._all_left.wait()
        except TimeoutError:
            _log.warning("%d clients had not taken the end of their answers", len(self._leaving))
            for connection in tuple(self._leaving):
                assert isinstance(connection, BoundedConnection)
                connection.give_up()
