"""A client's connection within bounds: deadlines for heads, idle times and farewells, a head's size, a seat in the cap.

No timer runs while a request is being answered: the byte path has deadlines of its own. What this rests on, for
aiohttp 3.14, each point held by a test:

- every parsed request, and every parser's error, raises `_request_count`;
- `_handle_request` is around every answer that aiohttp's task gives;
- the server's `connection_made` and `connection_lost` are told of every connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.headers import error_response as error_bytes
from wings_proxy.proxy.headers import request_id
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.server.connection_cap import ConnectionCap
from wings_proxy.server.paced_connection import PacedConnection

_log = logging.getLogger(__name__)

PROBE_PATHS: Final = frozenset(
    {"/health", "/livez", "/readyz", "/startupz", "/livez/engine", "/v1/health/live", "/v1/health/ready"}
)
"""What is answered on connections of the reserve."""


NotHttp = _ErrInfo
"""What stands in the place of a request that the parser could not read."""

_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})

OriginLines = Callable[[str | None], bytes]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of each connection; seconds and bytes."""

    head_seconds: float = 30.0
    """For a request's head: from its first byte, and for the first one from the connection's beginning."""
    head_bytes: int = 64 * 1024
    """Of a head that has not ended yet. aiohttp's own bounds, of lines and their number, would let it keep 2 MiB."""
    farewell_seconds: float = 60.0
    """How long a closed connection may keep the bytes its client does not read."""


class BoundedConnection(PacedConnection):
    """Cut when its head is late or too long, or when its client does not let go of it."""

    __slots__ = ("_broken", "_cap", "_head_bytes", "_head_timer", "_raw", "_untaken")

    def __init__(self, manager: BoundedServer, **kwargs: Any) -> None:
        super().__init__(manager, pace=manager.pace, **kwargs)
        self._cap = manager.cap
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._broken = False
        """Whether what came is not HTTP: nothing behind it is read as such."""
        self._raw: asyncio.Transport | None = None
        """The transport, also while it is closing."""
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
        elif data and not inside_body and (self._cap.is_idle(self) or self._cap.probes_only(self)):
            self._head_bytes += len(data)
            if self._head_bytes > self._server.bounds.head_bytes:
                self._refuse_head(
                    ApiError(400, ErrorCode.INVALID_REQUEST, "the request's head is too long", close=True)
                )
            elif self._head_timer is None:
                self._head_timer = self._loop.call_later(self._server.bounds.head_seconds, self._head_is_late)

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
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        seconds = self._server.bounds.head_seconds
        message = f"the request's head did not come within {seconds:g} s"
        self._refuse_head(ApiError(408, ErrorCode.REQUEST_TIMEOUT, message, close=True))

    def _refuse_head(self, error: ApiError) -> None:
        self._server.on_refusal(error.code)
        # To a client that has not begun, an answer would pass for that to its first request.
        if self._head_bytes and self.transport is not None:
            self.transport.write(
                error_bytes(error, request_id=request_id(None), head_request=False, connection=b"close")
            )
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
            self.force_close()
            self.bound_farewell()
        elif untaken and untaken == self._untaken:
            self.transport.abort()
        elif idle:
            self._look_again()

    # ---- turns

    def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        self._cap.busy(self)
        self.take_body(request.content)  # now: the task that answers begins a turn later
        return self._answer(request, start_time, request_handler)

    async def _answer(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        cap = self._cap
        if cap.probes_only(self) and request.raw_path.partition("?")[0] not in PROBE_PATHS:
            request_handler = self._overloaded
        if request.version not in _VERSIONS:
            request_handler = self._not_our_version
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            self.parse_kept()
            if not self._messages:  # else the next one follows at once, and what comes meanwhile is no head
                cap.idle(self)

    async def _not_our_version(self, _: web.BaseRequest) -> web.StreamResponse:
        error = ApiError(400, ErrorCode.INVALID_REQUEST, "this server speaks HTTP/1.1 and HTTP/1.0", close=True)
        self._server.on_refusal(error.code)
        return self._server.answer(error)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer of aiohttp's, to a client that takes it in time: one that never reads would stay busy."""
        try:
            async with asyncio.timeout(self._server.bounds.farewell_seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if self._raw is not None:
                self._raw.abort()
            raise ConnectionResetError("the client does not read") from None
        finally:
            self._drop_quotation()  # what followed an upgrade that was declined was parsed here

    async def _overloaded(self, _: web.BaseRequest) -> web.StreamResponse:
        error = ApiError(503, ErrorCode.OVERLOADED, "too many connections", retry_after=1, close=True)
        self._server.on_refusal(error.code)
        return self._server.answer(error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that is not HTTP (400), or that a handler of ours failed on.

        aiohttp's own way quotes the offending line, which may hold a key or a prompt, to the client and, with a
        traceback, to the log: strangers could fill it with what they like. It also names its version and Python's.
        """
        if status != 400:
            super().handle_error(request, status, exc, message)  # logs
            return self._server.answer(ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True))
        _log.debug("not HTTP: %s", exc)
        self._server.on_refusal(ErrorCode.INVALID_REQUEST)
        refusal = "the request is not HTTP/1.1, or its head is too long or ambiguous"
        return self._server.answer(ApiError(400, ErrorCode.INVALID_REQUEST, refusal, close=True))

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what failed; not that a client left inside a body nobody wanted: to aiohttp that is a RuntimeError."""
        if self.transport is not None or not isinstance(kwargs.get("exc_info"), RuntimeError):
            super().log_exception(*args, **kwargs)

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
        if raw is not None and raw.is_closing() and raw.get_write_buffer_size():
            self._loop.call_later(self._server.bounds.farewell_seconds, raw.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the deadlines."""
        self._stop_head_timer()
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
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.bounds = bounds
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
            leaving.force_close()
            assert isinstance(leaving, BoundedConnection)
            leaving.bound_farewell()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Take the seat back."""
        super().connection_lost(handler, exc)
        self.cap.lost(handler)
