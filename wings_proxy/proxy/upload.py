"""The request's body on its way to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import StreamReader, web

from wings_proxy.proxy.admission import too_large
from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.downstream import Downstream
from wings_proxy.proxy.exchange import Exchange
from wings_proxy.proxy.http1 import LAST_CHUNK, encode_chunk
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.proxy.upstream import Connection

SMALL_BODY_BYTES = 64 * 1024
"""A body announced as no longer is read before the engine is asked: one write, and it can be sent again."""

_LOOK_SECONDS = 0.5
"""How often a body that pauses is looked at for having become malformed."""

_LEFT_SECONDS = 0.05
"""How often a client that is not read from, because the engine does not read either, is looked at."""


_LEAST_BYTES_PER_SECOND = 500
"""What a body must come with in the long run: one byte a minute would hold an engine's slot for ever."""


class Body:
    """The body of a client's request, as it comes."""

    def __init__(self, content: StreamReader, client: Downstream, patience_seconds: float, pace: UploadPace) -> None:
        """Take how long the client may keep us waiting for its body; each 500 bytes that came are a second more.

        *pace* is that of all uploads together.
        """
        self._content = content
        self._client = client
        self._patience_seconds = patience_seconds
        self._pace = pace
        self._waited = 0.0

    async def read(self) -> bytes:
        """Return what has come, at least one byte, or b"" at the end; raises ApiError when it will not come.

        Only time spent waiting for the client counts: an engine that does not read is no fault of its.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(_LOOK_SECONDS, self._patience_seconds - self._waited))):
                    data = await self._content.readany()
            except TimeoutError as error:
                self._waited += loop.time() - began
                if self._client.body_is_broken:
                    raise _malformed() from error
                if self._waited >= self._patience_seconds:
                    message = f"the request's body is too slow: waited {self._waited:.0f} s for it"
                    raise ApiError(408, ErrorCode.REQUEST_TIMEOUT, message, close=True) from error
            except web.RequestPayloadError as error:
                raise _malformed() from error
            else:
                self._waited += loop.time() - began
                self._patience_seconds += len(data) / _LEAST_BYTES_PER_SECOND
                return data

    async def share(self) -> bytes:
        """Read when it is this body's turn; where that must be waited for, nothing comes from its client meanwhile."""
        if self._content.at_eof():
            return b""  # at once: the engine may answer already, and would seem not to have waited for the end
        if not self._pace.take():
            self._client.hold()
            try:
                await self._pace.share()
            finally:
                self._client.read_on()
        return await self.read()

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
    while piece := await body.share():
        exchange.received_bytes += len(piece)
        if exchange.received_bytes > limit:
            raise too_large(limit)
        connection.write(encode_chunk(piece) if chunked else piece)
        while connection.writing_paused:
            await body.room(connection)
        moved()
    if chunked:
        connection.write(LAST_CHUNK)
