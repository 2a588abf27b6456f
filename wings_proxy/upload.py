"""The request's body on its way to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import StreamReader, web

from wings_proxy.admission import too_large
from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.downstream import Downstream
from wings_proxy.exchange import Exchange
from wings_proxy.http1 import LAST_CHUNK, encode_chunk
from wings_proxy.upstream import Connection

_LOOK_SECONDS = 0.5
"""How often a body that pauses is looked at for having become malformed."""

_LEFT_SECONDS = 0.05
"""How often a client that is not read from, because the engine does not read either, is looked at."""


class Body:
    """The body of a client's request, as it comes."""

    def __init__(self, content: StreamReader, client: Downstream, pause_seconds: float) -> None:
        """Take the longest pause the client may make inside its body."""
        self._content = content
        self._client = client
        self._pause_seconds = pause_seconds

    async def read(self) -> bytes:
        """Return what has come, at least one byte, or b"" at the end; raises ApiError when it will not come."""
        waited = 0.0
        while True:
            step = min(_LOOK_SECONDS, self._pause_seconds - waited)
            try:
                async with asyncio.timeout(step):
                    return await self._content.readany()
            except TimeoutError as error:
                waited += step
                if self._client.body_is_broken:
                    raise _malformed() from error
                if waited >= self._pause_seconds:
                    message = f"no byte of the request's body for {self._pause_seconds:g} s"
                    raise ApiError(408, ErrorCode.REQUEST_TIMEOUT, message, close=True) from error
            except web.RequestPayloadError as error:
                raise _malformed() from error

    async def room(self, connection: Connection) -> None:
        """Wait a moment for room in the engine's buffers, and see to it that a client that leaves is noticed."""
        try:
            async with asyncio.timeout(_LEFT_SECONDS):
                await connection.drain()
        except TimeoutError:
            if self._client.has_left:
                self._client.reset()

    async def read_all(self) -> bytes:
        """Return the whole of a body known to be small."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)


def _malformed() -> ApiError:
    return ApiError(400, ErrorCode.INVALID_REQUEST, "the request's body is malformed", close=True)


async def pump_body(
    body: Body,
    connection: Connection,
    exchange: Exchange,
    moved: Callable[[], None],
    *,
    chunked: bool,
    limit: int,
) -> None:
    """Stream a body to the engine, holding no more of it than two buffers.

    *moved* is called for each piece the engine's connection took. Raises ApiError when the body is longer
    than *limit* bytes, malformed, or pauses too long; the engine then has not seen its end.
    """
    while piece := await body.read():
        exchange.received_bytes += len(piece)
        if exchange.received_bytes > limit:
            raise too_large(limit)
        connection.write(encode_chunk(piece) if chunked else piece)
        while connection.writing_paused:
            await body.room(connection)
        moved()
    if chunked:
        connection.write(LAST_CHUNK)
