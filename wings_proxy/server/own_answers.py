"""What aiohttp's task answers on a client's connection: requests for our own endpoints, and what is no request.

What this rests on, for aiohttp 3.14, each point held by a test: `_handle_request` is around every answer that aiohttp's
task gives, `finish_response` around the sending of it, and `handle_error` makes those of requests that failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.downstream import reset
from wings_proxy.server.bounded_connection import LINGER_SECONDS, BoundedConnection

_log = logging.getLogger(__name__)

PROBE_PATHS: Final = frozenset(
    {"/health", "/livez", "/readyz", "/startupz", "/livez/engine", "/v1/health/live", "/v1/health/ready"}
)
"""What is answered on connections of the reserve."""

_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})


class AnsweringConnection(BoundedConnection):
    """Answers by aiohttp's task, within bounds, and never in aiohttp's words."""

    __slots__ = ()

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
            self.settle_body()
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
                finished = await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if self._raw is not None:
                reset(self._raw)
            raise ConnectionResetError("the client does not read") from None
        finally:
            self._drop_quotation()  # what followed an upgrade that was declined was parsed here
        if self._broken and not self._messages:
            self.say_no_more()
            await asyncio.sleep(LINGER_SECONDS)  # or until the connection's end, which cancels it
        return finished

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
