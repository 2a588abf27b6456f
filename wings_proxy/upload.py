"""The request's body on its way to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import StreamReader, web

from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.exchange import Exchange
from wings_proxy.http1 import LAST_CHUNK, encode_chunk
from wings_proxy.upstream import Connection


def too_large(limit: int) -> ApiError:
    """Return the refusal of a body longer than *limit* bytes."""
    return ApiError(413, ErrorCode.REQUEST_TOO_LARGE, f"the request's body is longer than {limit} bytes", close=True)


async def _read_some(content: StreamReader, seconds: float) -> bytes:
    """Return the next bytes of a request's body, b"" at its end."""
    try:
        async with asyncio.timeout(seconds):
            return await content.readany()
    except TimeoutError as error:
        raise ApiError(
            408, ErrorCode.REQUEST_TIMEOUT, f"no byte of the request's body for {seconds:g} s", close=True
        ) from error
    except web.RequestPayloadError as error:
        raise ApiError(400, ErrorCode.INVALID_REQUEST, "the request's body is malformed", close=True) from error


async def read_small_body(content: StreamReader, seconds: float) -> bytes:
    """Return the whole of a body known to be small; *seconds* is the longest pause a client may make."""
    pieces = []
    while piece := await _read_some(content, seconds):
        pieces.append(piece)
    return b"".join(pieces)


async def pump_body(
    content: StreamReader,
    connection: Connection,
    exchange: Exchange,
    moved: Callable[[], None],
    *,
    chunked: bool,
    limit: int,
    seconds: float,
) -> None:
    """Stream a body to the engine, holding no more of it than two buffers.

    *moved* is called for each piece the engine's connection took. Raises ApiError when the body is longer
    than *limit* bytes, malformed, or pauses for more than *seconds*; the engine then has not seen its end.
    """
    while piece := await _read_some(content, seconds):
        exchange.received_bytes += len(piece)
        if exchange.received_bytes > limit:
            raise too_large(limit)
        connection.write(encode_chunk(piece) if chunked else piece)
        await connection.drain()
        moved()
    if chunked:
        connection.write(LAST_CHUNK)
